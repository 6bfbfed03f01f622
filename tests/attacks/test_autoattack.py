"""The ensemble's attacks: equal to the library's own where those run, and within the budget for any number of classes."""

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from stages.attacks import autoattack
from stages.attacks.suite import check_within_budget
from stages.models.inference import frozen_eval_mode

EPS = {"linf": 0.012, "l2": 0.09}


def toy_problem(
    classes: int, images: int = 12, seed: int = 0
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A smooth random net that classifies every image correctly, some near the decision boundary."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 6 * 6, 24), nn.GELU(), nn.Linear(24, classes)
    ).eval()
    x = torch.rand(images, 3, 6, 6)
    return model, x, model(x).argmax(1)


def library_noise(x: torch.Tensor, seed: int = 0):
    """Noise as the library draws it: for a whole batch, from the global generator."""

    def noise(distribution: str, sample: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return 2 * torch.rand(x.shape) - 1 if distribution == "uniform" else torch.randn(x.shape)

    return noise


def ensemble(classes: int, norm: str = "linf", steps: int = 20, queries: int = 200):
    return autoattack.ensemble_attacks(classes, steps=steps, queries=queries, norm=norm, seed=0)


def test_ensemble_attacks_depend_on_number_of_classes():
    assert list(ensemble(2)) == ["apgd_ce", "apgd_margin", "fab_t", "square"]
    assert list(ensemble(3)) == ["apgd_ce", "apgd_dlr", "apgd_margin", "fab_t", "square"]
    assert list(ensemble(4)) == list(ensemble(10)) == ["apgd_ce", "apgd_t", "fab_t", "square"]


def test_ensemble_is_not_called_autoattack():
    """With three classes it isn't the standard AutoAttack, so its name tells the number of classes."""
    assert autoattack.ensemble_name(3) == "aa-k3"


def test_library_standard_attack_fails_for_three_classes():
    """The reason for an ensemble of our own; when this test fails, the library supports three classes."""
    model, x, y = toy_problem(3)
    with pytest.raises(IndexError):
        AutoAttack(model, eps=1e-4, seed=0).run_standard_evaluation(x, y)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_ensemble_matches_library_standard_attack_for_ten_classes(norm):
    model, x, y = toy_problem(10)
    oracle = AutoAttack(model, eps=EPS[norm], norm=autoattack.NORMS[norm], seed=0)
    x_expected = oracle.run_standard_evaluation(x, y)[0]
    expected_success = model(x_expected).argmax(1) != y
    x_adv, remaining = x.clone(), torch.arange(len(x))
    for attack in ensemble(10, norm, steps=100, queries=5000).values():
        candidate = attack(
            model, x[remaining], y[remaining], EPS[norm], library_noise(x[remaining])
        )
        check_within_budget(x[remaining], candidate, EPS[norm], norm=norm)
        x_adv[remaining] = candidate
        remaining = remaining[model(candidate).argmax(1) == y[remaining]]
        if not len(remaining):
            break
    assert 0 < expected_success.sum() < len(x), (
        "an eps at which all or no attacks succeed tests nothing"
    )
    assert torch.equal(model(x_adv).argmax(1) != y, expected_success)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_bit_identical_to_library_from_same_start(norm):
    model, x, y = toy_problem(10)
    oracle = AutoAttack(model, eps=EPS[norm], norm=autoattack.NORMS[norm], seed=0)
    oracle.apgd.loss = "ce"
    expected = oracle.apgd.perturb(x, y)
    x_adv = ensemble(10, norm, steps=100)["apgd_ce"](model, x, y, EPS[norm], library_noise(x))
    assert (expected != x).any()
    assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("classes", "scale"), [(2, 8), (3, 3), (5, 1)])
def test_every_attack_keeps_budget_and_leaves_generator_and_model_unchanged(classes, scale, norm):
    eps = scale * EPS[norm]
    model, x, y = toy_problem(classes)
    x = x.contiguous(memory_format=torch.channels_last)
    successes = {}
    for name, attack in ensemble(classes, norm, steps=30).items():
        torch.manual_seed(7)
        before = torch.get_rng_state()
        uniform = torch.rand(x.shape)
        torch.set_rng_state(before)
        x_adv = attack(
            model, x, y, eps, lambda distribution, sample, uniform=uniform: 2 * uniform - 1
        )
        check_within_budget(x, x_adv, eps, norm=norm, name=name)
        successes[name] = int((model(x_adv).argmax(1) != y).sum())
        assert torch.equal(torch.get_rng_state(), before), name
        assert all(p.grad is None and p.requires_grad for p in model.parameters()), name
    assert max(successes.values()) > 0
    del successes["square"]  # few queries, no gradient
    # On so smooth a net the gradient attacks are about equally strong.
    assert max(successes.values()) - min(successes.values()) <= 3, successes


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_attack_depends_on_the_batch(norm):
    model, x, y = toy_problem(3)
    noise = torch.rand(x.shape) * 2 - 1
    for name, attack in ensemble(3, norm, steps=15).items():
        batch = attack(model, x, y, EPS[norm], lambda distribution, sample: noise)
        for i in (0, 5, 11):
            single = attack(
                model,
                x[i : i + 1],
                y[i : i + 1],
                EPS[norm],
                lambda distribution, sample, i=i: noise[i : i + 1],
            )
            assert torch.allclose(batch[i], single[0], atol=1e-4), (name, i)


def test_margin_apgd_and_fab_match_linear_closed_form():
    """With linear logits attacks succeed just above |w.x + b| / ||w||_1, not below (pixels far enough from 0 and 1)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).eval()
    x = torch.full((1, 3, 4, 4), 0.5)
    with torch.no_grad():
        y = model(x).argmax(1)
        weight, bias = (
            (model[1].weight[y] - model[1].weight[1 - y])[0],
            (model[1].bias[y] - model[1].bias[1 - y])[0],
        )
        minimum = ((weight @ x.flatten() + bias) / weight.abs().sum()).item()
    with frozen_eval_mode(model):
        for name in ("apgd_margin", "fab_t"):
            attack = ensemble(2, steps=50)[name]
            for eps, expected in ((0.97 * minimum, False), (1.06 * minimum, True)):
                x_adv = attack(model, x, y, eps, lambda distribution, sample: torch.zeros_like(x))
                assert (model(x_adv).argmax(1) != y).item() is expected, (name, eps)
