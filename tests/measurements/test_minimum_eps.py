"""The minimum adversarial perturbation against the closed form, and against FAB."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages.attacks import autoattack, minimum_eps
from stages.attacks.minimum_eps import bisect_eps, initial_bracket, max_eps
from stages.attacks.perturbations import margin_loss
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import per_image_noise, perturbation_norm
from stages.core.checkpoints import StepCache
from stages.core.params import AttackEvalParams, ThreatModel
from stages.core.params_file import load_params
from tests.helpers.datasets import attack_predictions, toy_dataset, under_attack
from tests.helpers.models import LinearLogits
from tests.helpers.repository import ROOT

PARAMS = load_params(ROOT / "params.yaml")


def noise_for(x):
    return per_image_noise(0, np.arange(len(x)), x.shape[1:], x)


def found_eps(fabric, model, x, y, norm="linf", rounds=14, steps=10, low=0.0, high=float("inf")):
    target = ModelUnderAttack(
        fabric, model, model, split=None, norm=norm, batch_size=len(x), seed=0
    )
    bracket = (torch.full((len(x),), value) for value in (low, high))
    return bisect_eps(
        target, x, y, noise_for(x)("uniform", 0), *bracket, rounds=rounds, steps=steps
    )


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_minimum_eps_of_linear_model_matches_closed_form(norm, dual, fabric):
    """|w.x + b| over the dual norm of w; pixels are far enough from 0 and 1 that clipping plays no part."""
    torch.manual_seed(1)
    model = LinearLogits(torch.randn(3 * 4 * 4), 0.1)
    x = 0.5 + 0.02 * torch.randn(6, 3, 4, 4)
    y = model(x).argmax(1)
    with torch.no_grad():
        expected = model(x)[:, 1].abs() / model.weight.norm(p=dual)
        found = found_eps(fabric, model, x, y, norm)
    assert (expected < max_eps(x, norm=norm)).all()
    assert (found >= expected * 0.999).all(), "no attack can succeed below the closed form"
    assert torch.allclose(found, expected, rtol=0.02, atol=1e-4)


def test_minimum_eps_is_infinite_for_constant_and_tiny_for_misclassified(fabric):
    model = LinearLogits(torch.zeros(48), 1.0)
    x = torch.full((2, 3, 4, 4), 0.5)
    found = found_eps(fabric, model, x, torch.tensor([1, 0]))
    assert found[0] == torch.inf  # nothing changes a constant prediction
    assert found[1] < 1e-4  # misclassified without a perturbation


def test_bisection_keeps_known_upper_bound(fabric):
    model = LinearLogits(torch.zeros(48), 1.0)
    found = found_eps(fabric, model, torch.full((2, 3, 4, 4), 0.5), torch.tensor([1, 1]), high=0.02)
    assert (found <= 0.02).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimum_eps_agrees_with_fab(norm, fabric):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 6 * 6, 24), nn.GELU(), nn.Linear(24, 3)
    ).eval()
    x = torch.rand(8, 3, 6, 6)
    y = model(x).argmax(1)
    found = found_eps(fabric, model, x, y, norm, rounds=12, steps=20)
    fab = autoattack.ensemble_attacks(3, steps=100, queries=1, norm=norm, seed=0)["fab_t"]
    x_adv = fab(model, x, y, max_eps(x, norm=norm), noise_for(x))
    expected = torch.where(
        margin_loss(model(x_adv), y) > 0, perturbation_norm(x, x_adv, norm=norm), torch.inf
    )
    assert torch.isfinite(found).all()
    assert torch.allclose(found, expected, rtol=0.1), (found, expected)


def test_initial_bracket_comes_from_predictions():
    rows = [
        ("none", 0.0, "a", 0.0),
        ("pgd", 0.01, "a", 0.01),
        ("pgd", 0.02, "a", 0.02),
        ("fgsm", 0.04, "b", 0.035),
        ("pgd", 0.04, "b", 0.03),
    ]
    table = pd.DataFrame(rows, columns=["attack", "eps", "prediction", "linf"]).assign(label="a")
    assert initial_bracket(table, norm="linf") == (0.02, 0.03)
    assert initial_bracket(table[table["prediction"] == "a"], norm="linf") == (0.02, float("inf"))
    assert initial_bracket(table.assign(label="b"), norm="linf") == (
        0.0,
        0.0,
    )  # misclassified without a perturbation


def test_image_misclassified_without_a_perturbation_is_not_searched(fabric, small_net, monkeypatch):
    """Its eps is 0, by which nothing can be divided."""
    dataset, seen, bisect = toy_dataset(size=16), [], minimum_eps.bisect_eps
    p = AttackEvalParams.model_validate(
        PARAMS.attack_eval.model_dump() | {"aa_steps": 2, "aa_queries": 2}
    )
    target = under_attack(fabric, small_net, dataset)
    predictions = attack_predictions(
        fabric, small_net, dataset, ThreatModel(norm="linf", eps=0.03, eps_grid=(0.03,)), p
    )
    monkeypatch.setattr(
        minimum_eps,
        "bisect_eps",
        lambda *args, **sizes: seen.append(args[5]) or bisect(*args, **sizes),
    )
    table = minimum_eps.find_minimum_eps(
        target, dataset, np.arange(len(target.split)), predictions, p, StepCache()
    )
    wrong = (
        predictions[predictions["attack"] == "none"].set_index("path").eval("label != prediction")
    )
    assert 0 < wrong.sum() < len(wrong)
    assert (table.set_index("path")["eps"] == 0).sum() == wrong.sum()
    assert all((high > 0).all() for high in seen)
