"""The methods of adversarial training against their papers' formulas, written out in float64."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.attacks.perturbations import fgsm, pgd
from stages.training import methods
from stages.training.methods import divergence, free, kl_pgd_perturb, moved_weights, nfgsm, pgd_perturb
from tests.conftest import tiny_classifier
from tests.helpers.training_runs import EPS, STILL, P, train

METHODS = ("fgsm", "fgsm_rs", "nfgsm", "pgd", "trades", "mart", "free")
BETA = 6.0


def noise_like(x):
    return torch.rand_like(x) * 2 - 1


def method(name, norm="linf"):
    return methods.of(dataclasses.replace(P, method=name, alpha_rel=0.5, steps=3), norm, EPS)


class Answers(nn.Module):
    """A model that gives prepared logits: those of x first, then those of x_adv."""

    def __init__(self, logits, logits_adv):
        super().__init__()
        self.logits, self.logits_adv = logits, logits_adv

    def forward(self, x):
        return torch.cat([self.logits, self.logits_adv])


def softmax(logits):
    powers = [math.exp(v) for v in logits]
    return [v / sum(powers) for v in powers]


def trades_by_hand(logits, logits_adv, y):
    p, q = softmax(logits), softmax(logits_adv)
    return -math.log(p[y]) + BETA * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mart_by_hand(logits, logits_adv, y):
    p, q = softmax(logits), softmax(logits_adv)
    boosted = -math.log(q[y]) - math.log(1 - max(v for k, v in enumerate(q) if k != y))
    return boosted + BETA * (1 - p[y]) * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("name", ["trades", "mart"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_losses_and_gradients_are_the_papers(name, classes):
    losses = {"trades": methods.trades_losses, "mart": methods.mart_losses}[name]
    by_hand = {"trades": trades_by_hand, "mart": mart_by_hand}[name]
    logits, logits_adv = (3 * torch.randn(8, classes, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_(True), logits_adv.requires_grad_(True)
    y = torch.arange(8) % classes
    x = torch.zeros(8, 3, 2, 2)
    ours, shown = losses(Answers(logits, logits_adv), x, x, y, partial(F.cross_entropy, reduction="none"), beta=BETA)
    wanted = [by_hand(a, b, k) for a, b, k in zip(logits.tolist(), logits_adv.tolist(), y.tolist(), strict=True)]
    assert ours.tolist() == pytest.approx(wanted, rel=1e-10)
    assert torch.equal(shown, logits_adv), "training accuracy is that on attacked pictures"

    found = torch.autograd.grad(ours.sum(), (logits, logits_adv))
    for which, gradient in enumerate(found):
        for i in range(8):
            for k in range(classes):
                sides = []
                for h in (1e-6, -1e-6):
                    pair = [logits[i].tolist(), logits_adv[i].tolist()]
                    pair[which][k] += h
                    sides.append(by_hand(*pair, int(y[i])))
                assert gradient[i, k].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_a_certain_wrong_answer_costs_much_but_not_infinity():
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    y = torch.tensor([1])
    for losses in (methods.trades_losses, methods.mart_losses):
        value, _ = losses(Answers(logits, -logits), logits, logits, y, partial(F.cross_entropy, reduction="none"), beta=BETA)
        assert value.isfinite().all()
        assert value > 100


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_label_smoothing_reaches_the_cross_entropy_of_every_method(name):
    logits, logits_adv = torch.randn(4, 3), torch.randn(4, 3)
    y = torch.arange(4) % 3
    losses = {"trades": methods.trades_losses, "mart": methods.mart_losses}[name]
    plain, smooth = (
        losses(Answers(logits, logits_adv), y, y, y, partial(F.cross_entropy, reduction="none", label_smoothing=s), beta=BETA)[
            0
        ]
        for s in (0.0, 0.3)
    )
    log_p = (logits if name == "trades" else logits_adv).log_softmax(1)
    change = 0.3 * (log_p.gather(1, y[:, None]).squeeze(1) - log_p.mean(1))
    assert torch.allclose(smooth - plain, change, atol=1e-5)


def test_steps_up_the_divergence_are_steps_up_the_cross_entropy_against_the_answer(small_net, pictures):
    model, x = small_net.double(), pictures[0].double()
    noise = noise_like(x)
    answers = []
    hook = model.register_forward_hook(lambda *a: answers.append(1))
    found = kl_pgd_perturb(model, x, pictures[1], EPS, noise, alpha_rel=0.25, steps=3)
    hook.remove()
    assert len(answers) == 4, "the clean answer is asked for once"
    point, logits = x + EPS * noise, model(x).detach()
    for _ in range(3):
        point = point.clamp(0, 1).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(divergence(logits, model(point)).sum(), point)
        point = torch.clamp(point + 0.25 * EPS * gradient.sign(), x - EPS, x + EPS)
    assert torch.allclose(found, point.clamp(0, 1).detach())


def test_one_step_methods_are_special_cases(small_net, pictures):
    x, y = pictures
    nothing = torch.zeros_like(x)
    assert torch.equal(nfgsm(small_net, x, y, EPS, nothing), fgsm(small_net, x, y, EPS))
    assert torch.equal(pgd_perturb(small_net, x, y, EPS, nothing, alpha_rel=1.0, steps=1), fgsm(small_net, x, y, EPS))


def test_many_steps_break_as_much_as_the_attack_that_keeps_its_best(small_net, pictures):
    x, _ = pictures
    y, noise = small_net(x).argmax(1), noise_like(x)
    last = small_net(pgd_perturb(small_net, x, y, 0.1, noise, alpha_rel=0.25, steps=20)).argmax(1) != y
    best = small_net(pgd(small_net, x, y, 0.1, noise, alpha=0.025, steps=20)).argmax(1) != y
    assert best.any()
    assert abs(int(best.sum()) - int(last.sum())) <= 1


def test_free_moves_the_picture_by_the_gradient_of_the_training_step(small_net, pictures):
    x, y = pictures
    noise = noise_like(x)
    start = noise.clone()
    x_adv = free(small_net, x, y, EPS, noise, alpha_rel=0.5)
    assert torch.equal(noise, start)
    F.cross_entropy(small_net(x_adv), y).backward()
    wanted = (start + 0.5 * x_adv.grad.sign()).clamp(-1, 1)
    assert torch.allclose(free(small_net, x, y, EPS, noise, alpha_rel=0.5), (x + EPS * wanted).clamp(0, 1), atol=1e-6)


def test_free_replays_every_batch_and_takes_as_many_steps(fabric, tmp_path):
    seen = []
    p = dataclasses.replace(P, method="free", steps=3, epochs=2, eps_ramp=0.0)
    base = methods.of(p, "linf", EPS)

    def spy(model, x, x_adv, y, criterion):
        seen.append((x.clone(), (x_adv - x).detach()))
        return base.losses(model, x, x_adv, y, criterion)

    train(fabric, tmp_path / "c", p, dataclasses.replace(base, losses=spy))
    assert len(seen) == 2 * 3  # 48 pictures in batches of 16
    for epoch in (seen[:3], seen[3:]):
        assert all(torch.equal(x, epoch[0][0]) for x, _ in epoch), "one batch, three times"
        assert not torch.equal(epoch[0][1], epoch[1][1]), "the perturbation goes on"
    assert not torch.equal(seen[0][0], seen[3][0])


def test_moved_weights_lie_where_the_loss_is_higher_and_come_back_to_the_bit(fabric):
    model = tiny_classifier()
    model.train()
    x, y = torch.rand(16, 3, 16, 16), torch.arange(16) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(network):
        torch.manual_seed(0)  # the same dropout
        return F.cross_entropy(network(x), y)

    here = loss(model).item()
    model.load_state_dict(before)
    with moved_weights(fabric, model, loss, size=0.01):
        now = model.state_dict()
        for name, value in before.items():
            moved = (now[name] - value).double().norm().item()
            if name.endswith("weight") and value.ndim > 1:
                assert moved == pytest.approx(0.01 * value.norm().item(), rel=1e-3), name
            else:
                assert moved == 0, f"{name}: norms, biases and BatchNorm's statistics stay"
        assert loss(model).item() > here
        model.load_state_dict({n: v for n, v in before.items() if "running" in n or "tracked" in n}, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with pytest.raises(KeyError), moved_weights(fabric, model, loss, size=0.01):
        raise KeyError
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_budget_and_leaves_the_model_as_it_was(name, norm, pictures):
    model = tiny_classifier()
    model.train()
    x, y = pictures
    x[:8] = (x[:8] > 0.5).float()  # pictures at the edge of the range
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x_adv = method(name, norm).perturb(model, x, y, EPS, noise_like(x))
    delta = (x_adv - x).detach()
    moved = (delta.abs() if norm == "linf" else delta.flatten(1).norm(dim=1)).max().item()
    assert 0 < moved <= (2.5 if name == "nfgsm" else 1) * EPS + 1e-6  # N-FGSM leaves the ball: noise of 2 eps, a step of alpha
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert torch.equal(method(name, norm).perturb(model, x, y, 0.0, noise_like(x)), x)


@pytest.mark.parametrize("awp", [0.0, 0.01])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_to_resist(name, awp, fabric, tmp_path):
    p = dataclasses.replace(P, epochs=15, lr=0.05, augment=STILL, val_images=24, method=name, steps=2, alpha_rel=0.75, awp=awp)
    result = train(fabric, tmp_path / "c", p, methods.of(p, "linf", EPS))
    assert max(row["val_robust_accuracy"] for row in result.history) > 0.8
    assert np.isfinite([row["train_loss"] for row in result.history]).all()
