"""The methods of adversarial training against their papers' formulas, written out in float64."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.attacks.gradient import fgsm, pgd
from stages.core.norms import Budget
from stages.core.params import TrainAdvParams
from stages.training.methods import kl_divergence, make_training_method
from tests.helpers.models import tiny_classifier
from tests.helpers.training_runs import EPS, NO_AUGMENTATION, train, with_params

BETA = 6.0
METHODS = get_args(TrainAdvParams.model_fields["method"].annotation)
ATTACKING = [name for name in METHODS if name != "noise"]


def noise_like(x):
    return torch.rand_like(x) * 2 - 1


def method(name, norm="linf", **changes):
    settings = {"alpha_rel": 0.5, "steps": 3, "beta": BETA, "label_smoothing": 0.0, **changes}
    return make_training_method(with_params(method=name, **settings), Budget.of(norm, EPS))


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
    y, x = torch.arange(8) % classes, torch.zeros(8, 3, 2, 2)
    losses, returned = method(name).losses(FixedLogits(logits, logits_adv), x, x, y)
    pairs = list(zip(logits.tolist(), logits_adv.tolist(), y.tolist(), strict=True))
    assert losses.tolist() == pytest.approx([reference(*pair) for pair in pairs], rel=1e-10)
    assert torch.equal(returned, logits_adv), "training accuracy is that on adversarial examples"

    for which, gradient in enumerate(torch.autograd.grad(losses.sum(), (logits, logits_adv))):
        for i in range(8):
            for k in range(classes):
                sides = []
                for h in (1e-6, -1e-6):
                    pair = [logits[i].tolist(), logits_adv[i].tolist()]
                    pair[which][k] += h
                    sides.append(reference(*pair, int(y[i])))
                finite_difference = (sides[0] - sides[1]) / 2e-6
                assert gradient[i, k].item() == pytest.approx(finite_difference, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_loss_of_confident_misclassification_is_finite(name):
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    losses, _ = method(name).losses(FixedLogits(logits, -logits), logits, logits, torch.tensor([1]))
    assert losses.isfinite().all()
    assert losses > 100


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_label_smoothing_applies_to_cross_entropy_term(name):
    logits, logits_adv = torch.randn(4, 3), torch.randn(4, 3)
    model, x, y = FixedLogits(logits, logits_adv), torch.zeros(4, 3, 2, 2), torch.arange(4) % 3
    plain, smooth = (method(name, label_smoothing=s).losses(model, x, x, y)[0] for s in (0.0, 0.3))
    log_p = (logits if name == "trades" else logits_adv).log_softmax(1)
    change = 0.3 * (log_p.gather(1, y[:, None]).squeeze(1) - log_p.mean(1))
    assert torch.allclose(smooth - plain, change, atol=1e-5)


def test_trades_perturbation_ascends_kl_divergence(small_net, images):
    model, x = small_net.double(), images[0].double()
    noise = noise_like(x)
    found = method("trades", alpha_rel=0.25).perturb(model, x, images[1], EPS, noise)
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
    assert torch.equal(found, fgsm(small_net, x, y, Budget.of("linf", EPS)))


def test_last_pgd_iterate_misclassifies_as_often_as_best(small_net, images):
    x, _ = images
    y, noise = small_net(x).argmax(1), noise_like(x)
    last = method("pgd", alpha_rel=0.25, steps=20).perturb(small_net, x, y, 0.1, noise)
    best = pgd(small_net, x, y, Budget.of("linf", 0.1), noise, alpha=0.025, steps=20)
    misclassified = [int((small_net(x_adv).argmax(1) != y).sum()) for x_adv in (last, best)]
    assert misclassified[1] > 0
    assert abs(misclassified[0] - misclassified[1]) <= 1


def test_free_updates_perturbation_by_training_gradient(small_net, images):
    x, y = images
    free, noise = method("free", alpha_rel=0.5), noise_like(x)
    x_adv = free.perturb(small_net, x, y, EPS, noise).requires_grad_(True)
    F.cross_entropy(small_net(x_adv), y).backward()
    updated = free.next_noise(noise, x_adv.grad)
    expected = (x + EPS * (noise + 0.5 * x_adv.grad.sign()).clamp(-1, 1)).clamp(0, 1)
    assert torch.allclose(free.perturb(small_net, x, y, EPS, updated), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKING)
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
    # N-FGSM leaves the ball: noise of 2 eps, a step of alpha.
    assert 0 < size <= (2.5 if name == "nfgsm" else 1) * EPS + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert torch.equal(method(name, norm).perturb(model, x, y, 0.0, noise_like(x)), x)


def test_noise_is_gaussian_of_its_sigma_and_finite_at_the_ends(images):
    x, y = torch.zeros(8, 3, 64, 64), torch.zeros(8, dtype=torch.long)
    noise = torch.linspace(-1, 1, x.numel()).view_as(x)  # as the uniform one, its ends included
    training = make_training_method(with_params(method="noise", sigma=0.3), Budget.of("l2", EPS))
    delta = training.perturb(None, x, y, training.eps_at(9, 10), noise).flatten()
    expected = torch.distributions.Normal(0, 0.3)
    assert delta.isfinite().all()
    assert torch.allclose(expected.cdf(delta), (noise.flatten() + 1) / 2, atol=1e-4)


@pytest.mark.parametrize("awp", [0.0, 0.01])
@pytest.mark.parametrize("name", METHODS)
def test_each_method_becomes_robust(name, awp, fabric, tmp_path):
    settings = {"method": name, "steps": 2, "alpha_rel": 0.75, "awp": awp, "val_images": 24}
    p = with_params(epochs=15, lr=0.05, augment=NO_AUGMENTATION, **settings)
    progress = train(fabric, tmp_path / "c", p, make_training_method(p, Budget.of("linf", EPS)))
    assert max(row["val_robust_accuracy"] for row in progress.history) > 0.8
    assert np.isfinite([row["train_loss"] for row in progress.history]).all()
