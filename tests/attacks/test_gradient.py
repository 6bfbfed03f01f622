"""Gradients and the steps along them, which attacks, training and validation share."""

import foolbox
import pytest
import torch

from stages.attacks.gradient import (
    fgsm,
    is_adversarial,
    margin_loss,
    pgd,
)
from stages.core.norms import NORMS, Budget
from tests.helpers.models import Wrapped

EPS = {"linf": 8 / 255, "l2": 0.5}


@pytest.fixture
def noise(images) -> torch.Tensor:
    return torch.rand_like(images[0]) * 2 - 1


def test_margin_loss_is_positive_exactly_for_a_misclassified_image():
    logits, y = torch.randn(200, 4), torch.arange(200) % 4
    assert torch.equal(margin_loss(logits, y) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_from_the_image_is_fgsm(norm, small_net, images):
    x, _ = images
    y, budget = small_net(x).argmax(1), Budget.of(norm, EPS[norm])
    expected = fgsm(small_net, x, y, budget)
    worse = margin_loss(small_net(expected), y) > margin_loss(small_net(x), y)
    assert worse.any()
    found = pgd(small_net, x, y, budget, alpha=budget.eps, steps=1)
    assert torch.allclose(found[worse], expected[worse])
    assert torch.equal(found[~worse], x[~worse])


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_returns_the_worst_point_that_it_visited(norm, small_net, images, noise):
    (x, y), eps, visited = images, EPS[norm], []

    def record(logits):
        visited.append(margin_loss(logits, y).detach())
        return logits

    budget = Budget.of(norm, eps)
    x_adv = pgd(Wrapped(small_net, logits=record), x, y, budget, noise, alpha=2 * eps, steps=7)
    worst = torch.stack(visited).amax(0)
    assert torch.allclose(margin_loss(small_net(x_adv), y), worst, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_each_image_may_have_an_eps_and_step_size_of_its_own(norm, small_net, images, noise):
    model, (x, y), noise = small_net.double(), images, noise.double()
    x, eps = x.double(), EPS[norm] * torch.linspace(0.1, 3, len(x), dtype=torch.double)
    eps = eps[:, None, None, None]
    together = pgd(model, x, y, Budget.of(norm, eps), noise, alpha=eps / 3, steps=5)
    for i in range(len(x)):
        one, number = slice(i, i + 1), eps[i].item()
        budget = Budget.of(norm, number)
        alone = pgd(model, x[one], y[one], budget, noise[one], alpha=number / 3, steps=5)
        assert torch.allclose(together[one], alone, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_agrees_with_foolbox(norm, steps, trained):
    """Foolbox returns the last iterate, ours the worst, so ours may only be stronger."""
    _, model = trained
    x = torch.rand(24, 3, 16, 16)
    y = model(x).argmax(1)
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    oracle, successes = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), []
    for eps in (EPS[norm] / 4, EPS[norm], 4 * EPS[norm]):
        attack = kind(abs_stepsize=eps / 4, steps=steps, random_start=False)
        expected = attack(oracle, x, y, epsilons=eps)[2]
        x_adv = pgd(model, x, y, Budget.of(norm, eps), alpha=eps / 4, steps=steps)
        success = is_adversarial(model, x_adv, y)
        assert (expected <= success).all()
        assert (expected != success).sum() <= 1
        successes.append(int(success.sum()))
    assert len(set(successes)) > 1
