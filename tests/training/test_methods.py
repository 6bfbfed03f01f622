"""The methods of adversarial training against their papers' formulas, written out in float64."""

import math
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.attacks.perturbations import fgsm, pgd
from stages.core.params import TrainAdvParams
from stages.training.methods import (
    METHODS,
    Free,
    adversarial_weight_perturbation,
    kl_divergence,
    make_training_method,
)
from tests.helpers.models import tiny_classifier
from tests.helpers.training_runs import EPS, NO_AUGMENTATION, train, with_params

BETA = 6.0


def noise_like(x):
    return torch.rand_like(x) * 2 - 1


def method(name, norm="linf", **changes):
    return make_training_method(
        with_params(**{"method": name, "alpha_rel": 0.5, "steps": 3, **changes}), norm=norm, eps=EPS
    )


def cross_entropy(label_smoothing=0.0):
    return partial(F.cross_entropy, reduction="none", label_smoothing=label_smoothing)


def test_every_method_of_schema_is_implemented():
    assert set(METHODS) == set(get_args(TrainAdvParams.model_fields["method"].annotation))


class FixedLogits(nn.Module):
    """Returns given logits, whatever its input: those of x, then those of x_adv."""

    def __init__(self, logits, logits_adv):
        super().__init__()
        self.logits, self.logits_adv = logits, logits_adv

    def forward(self, x):
        return torch.cat([self.logits, self.logits_adv])


def softmax(logits):
    powers = [math.exp(v) for v in logits]
    return [v / sum(powers) for v in powers]


def trades_reference(logits, logits_adv, y):
    p, q = softmax(logits), softmax(logits_adv)
    return -math.log(p[y]) + BETA * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mart_reference(logits, logits_adv, y):
    p, q = softmax(logits), softmax(logits_adv)
    boosted = -math.log(q[y]) - math.log(1 - max(v for k, v in enumerate(q) if k != y))
    return boosted + BETA * (1 - p[y]) * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("name", "reference"), [("trades", trades_reference), ("mart", mart_reference)]
)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_losses_and_gradients_match_papers(name, reference, classes):
    logits, logits_adv = (3 * torch.randn(8, classes, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_(True), logits_adv.requires_grad_(True)
    y = torch.arange(8) % classes
    x = torch.zeros(8, 3, 2, 2)
    losses, returned = method(name, beta=BETA).losses(
        FixedLogits(logits, logits_adv), x, x, y, cross_entropy()
    )
    expected = [
        reference(a, b, k)
        for a, b, k in zip(logits.tolist(), logits_adv.tolist(), y.tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(returned, logits_adv), "training accuracy is that on adversarial examples"

    for which, gradient in enumerate(torch.autograd.grad(losses.sum(), (logits, logits_adv))):
        for i in range(8):
            for k in range(classes):
                sides = []
                for h in (1e-6, -1e-6):
                    pair = [logits[i].tolist(), logits_adv[i].tolist()]
                    pair[which][k] += h
                    sides.append(reference(*pair, int(y[i])))
                assert gradient[i, k].item() == pytest.approx(
                    (sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-7
                )


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_loss_of_confident_misclassification_is_finite(name):
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    model = FixedLogits(logits, -logits)
    losses, _ = method(name, beta=BETA).losses(
        model, logits, logits, torch.tensor([1]), cross_entropy()
    )
    assert losses.isfinite().all()
    assert losses > 100


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_label_smoothing_applies_to_cross_entropy_term(name):
    logits, logits_adv = torch.randn(4, 3), torch.randn(4, 3)
    y = torch.arange(4) % 3
    model, x = FixedLogits(logits, logits_adv), torch.zeros(4, 3, 2, 2)
    plain, smooth = (
        method(name, beta=BETA).losses(model, x, x, y, cross_entropy(s))[0] for s in (0.0, 0.3)
    )
    log_p = (logits if name == "trades" else logits_adv).log_softmax(1)
    change = 0.3 * (log_p.gather(1, y[:, None]).squeeze(1) - log_p.mean(1))
    assert torch.allclose(smooth - plain, change, atol=1e-5)


def test_trades_perturbation_ascends_kl_divergence(small_net, images):
    model, x = small_net.double(), images[0].double()
    noise = noise_like(x)
    forward_passes = []
    hook = model.register_forward_hook(lambda *a: forward_passes.append(1))
    found = method("trades", alpha_rel=0.25).perturb(model, x, images[1], EPS, noise)
    hook.remove()
    assert len(forward_passes) == 4, "the clean prediction is computed once"
    point, logits = x + EPS * noise, model(x).detach()
    for _ in range(3):
        point = point.clamp(0, 1).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(kl_divergence(logits, model(point)).sum(), point)
        point = torch.clamp(point + 0.25 * EPS * gradient.sign(), x - EPS, x + EPS)
    assert torch.allclose(found, point.clamp(0, 1).detach())


@pytest.mark.parametrize("name", ["nfgsm", "pgd"])
def test_single_step_without_noise_is_fgsm(name, small_net, images):
    x, y = images
    found = method(name, alpha_rel=1.0, steps=1).perturb(small_net, x, y, EPS, torch.zeros_like(x))
    assert torch.equal(found, fgsm(small_net, x, y, EPS, norm="linf"))


def test_last_pgd_iterate_misclassifies_as_often_as_best(small_net, images):
    x, _ = images
    y, noise = small_net(x).argmax(1), noise_like(x)
    last = (
        small_net(
            method("pgd", alpha_rel=0.25, steps=20).perturb(small_net, x, y, 0.1, noise)
        ).argmax(1)
        != y
    )
    best = (
        small_net(pgd(small_net, x, y, 0.1, noise, alpha=0.025, steps=20, norm="linf")).argmax(1)
        != y
    )
    assert best.any()
    assert abs(int(best.sum()) - int(last.sum())) <= 1


def test_free_updates_perturbation_by_training_gradient(small_net, images):
    x, y = images
    free, noise = method("free", alpha_rel=0.5), noise_like(x)
    initial = noise.clone()
    x_adv = free.perturb(small_net, x, y, EPS, noise).requires_grad_(True)
    assert torch.equal(noise, initial)
    F.cross_entropy(small_net(x_adv), y).backward()
    updated = free.update_noise(noise, x_adv.grad)
    expected = (initial + 0.5 * x_adv.grad.sign()).clamp(-1, 1)
    assert torch.allclose(
        free.perturb(small_net, x, y, EPS, updated), (x + EPS * expected).clamp(0, 1), atol=1e-6
    )


class RecordingFree(Free):
    """Records (x, perturbation) of each step."""

    def __init__(self, p):
        super().__init__(p, norm="linf", eps=EPS)
        self.recorded = []

    def losses(self, model, x, x_adv, y, criterion):
        self.recorded.append((x.clone(), (x_adv - x).detach()))
        return super().losses(model, x, x_adv, y, criterion)


def test_free_replays_each_batch_with_updated_perturbation(fabric, tmp_path):
    p = with_params(method="free", steps=3, epochs=2, eps_ramp=0.0)
    free = RecordingFree(p)
    train(fabric, tmp_path / "c", p, free)
    assert len(free.recorded) == 2 * 3  # 48 images in batches of 16
    first, second = free.recorded[:3], free.recorded[3:]
    for epoch in (first, second):
        assert all(torch.equal(x, epoch[0][0]) for x, _ in epoch), "one batch, three times"
        assert not torch.equal(epoch[0][1], epoch[1][1]), "the perturbation is updated"
    assert not torch.equal(first[0][0], second[0][0])


def test_awp_increases_loss_and_restores_weights_exactly(fabric):
    model = tiny_classifier()
    model.train()
    x, y = torch.rand(16, 3, 16, 16), torch.arange(16) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(network):
        torch.manual_seed(0)  # the same dropout
        return F.cross_entropy(network(x), y)

    unperturbed_loss = loss(model).item()
    model.load_state_dict(before)
    with adversarial_weight_perturbation(fabric, model, loss, gamma=0.01):
        perturbed = model.state_dict()
        for name, value in before.items():
            change = (perturbed[name] - value).double().norm().item()
            if name.endswith("weight") and value.ndim > 1:
                assert change == pytest.approx(0.01 * value.norm().item(), rel=1e-3), name
            else:
                assert change == 0, (
                    f"{name}: norms, biases and BatchNorm's statistics are not perturbed"
                )
        assert loss(model).item() > unperturbed_loss
        model.load_state_dict(
            {n: v for n, v in before.items() if "running" in n or "tracked" in n}, strict=False
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with pytest.raises(KeyError), adversarial_weight_perturbation(fabric, model, loss, gamma=0.01):
        raise KeyError
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", METHODS)
def test_perturbation_is_bounded_and_leaves_model_unchanged(name, norm, images):
    model = tiny_classifier()
    model.train()
    x, y = images
    x[:8] = (x[:8] > 0.5).float()  # images at the ends of the range
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x_adv = method(name, norm).perturb(model, x, y, EPS, noise_like(x))
    delta = (x_adv - x).detach()
    size = (delta.abs() if norm == "linf" else delta.flatten(1).norm(dim=1)).max().item()
    assert (
        0 < size <= (2.5 if name == "nfgsm" else 1) * EPS + 1e-6
    )  # N-FGSM leaves the ball: noise of 2 eps, a step of alpha
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert torch.equal(method(name, norm).perturb(model, x, y, 0.0, noise_like(x)), x)


@pytest.mark.parametrize("awp", [0.0, 0.01])
@pytest.mark.parametrize("name", METHODS)
def test_each_method_becomes_robust(name, awp, fabric, tmp_path):
    p = with_params(
        epochs=15,
        lr=0.05,
        augment=NO_AUGMENTATION,
        val_images=24,
        method=name,
        steps=2,
        alpha_rel=0.75,
        awp=awp,
    )
    result = train(fabric, tmp_path / "c", p, make_training_method(p, norm="linf", eps=EPS))
    assert max(row["val_robust_accuracy"] for row in result.history) > 0.8
    assert np.isfinite([row["train_loss"] for row in result.history]).all()
