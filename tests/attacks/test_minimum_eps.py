"""The smallest budget against the closed form, and against FAB; common defects keep to their contract."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages.attacks import autoattack
from stages.attacks.corruptions import CORRUPTIONS, corrupt
from stages.attacks.minimum_eps import bisect, bracket, largest
from stages.attacks.perturbations import margin_loss
from stages.attacks.suite import distance, per_image_noise
from tests.conftest import Linear


def noise_for(x):
    return per_image_noise(0, np.arange(len(x)), x.shape[1:], x)


def smallest(model, x, y, norm="linf", rounds=14, steps=10, low=0.0, high=float("inf")):
    ends = (torch.full((len(x),), value) for value in (low, high))
    return bisect(model, x, y, noise_for(x), *ends, rounds=rounds, steps=steps, norm=norm, score=model)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_linear_model_has_a_closed_form(norm, dual):
    """|w.x + b| over the dual norm of w; pixels far enough from 0 and 1 that clipping plays no part."""
    torch.manual_seed(1)
    model = Linear(torch.randn(3 * 4 * 4), 0.1)
    x = 0.5 + 0.02 * torch.randn(6, 3, 4, 4)
    y = model(x).argmax(1)
    with torch.no_grad():
        expected = model(x)[:, 1].abs() / model.weight.norm(p=dual)
        found = smallest(model, x, y, norm)
    assert (expected < largest(norm, x)).all()
    assert (found >= expected * 0.999).all(), "no attack can succeed below the closed form"
    assert torch.allclose(found, expected, rtol=0.02, atol=1e-4)


def test_wrong_as_it_is_and_never():
    model = Linear(torch.zeros(48), 1.0)
    x = torch.full((2, 3, 4, 4), 0.5)
    found = smallest(model, x, torch.tensor([1, 0]), high=float("inf"))
    assert found[0] == torch.inf  # a constant answer: nothing changes it
    assert found[1] < 1e-4  # wrong already
    assert (smallest(model, x, torch.tensor([1, 1]), high=0.02) <= 0.02).all(), "what is known already is kept"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agrees_with_fab(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 24), nn.GELU(), nn.Linear(24, 3)).eval()
    x = torch.rand(8, 3, 6, 6)
    y = model(x).argmax(1)
    ours = smallest(model, x, y, norm, rounds=12, steps=20)
    fab = autoattack.parts(3, steps=100, queries=1, norm=norm, seed=0)["fab_t"]
    x_adv = fab(model, x, y, largest(norm, x), noise_for(x))
    theirs = torch.where(margin_loss(model(x_adv), y) > 0, distance(x_adv, x, norm), torch.inf)
    assert torch.isfinite(ours).all()
    assert torch.allclose(ours, theirs, rtol=0.1), (ours, theirs)


def test_bracket_is_what_the_table_says():
    cases = [
        ("none", 0.0, "a", 0.0),
        ("pgd", 0.01, "a", 0.01),
        ("pgd", 0.02, "a", 0.02),
        ("fgsm", 0.04, "b", 0.035),
        ("pgd", 0.04, "b", 0.03),
    ]
    table = pd.DataFrame(cases, columns=["attack", "eps", "prediction", "linf"]).assign(label="a")
    assert bracket(table, "linf") == (0.02, 0.03)
    assert bracket(table[table["prediction"] == "a"], "linf") == (0.02, float("inf"))
    assert bracket(table.assign(label="b"), "linf") == (0.0, 0.0)  # wrong as it is


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_defects_are_pictures_grow_and_belong_to_the_image(name):
    x = torch.rand(4, 3, 24, 24) * 0.6 + 0.2
    noise = noise_for(x)
    changes = []
    for severity in (1, 2, 3):
        out = corrupt(name, severity, x, noise)
        assert out.shape == x.shape
        assert out.dtype == torch.float32
        assert 0 <= out.min() <= out.max() <= 1
        assert torch.equal(out, corrupt(name, severity, x, noise))
        alone = corrupt(name, severity, x[2:3], per_image_noise(0, np.array([2]), x.shape[1:], x))
        assert torch.allclose(alone[0], out[2], atol=1e-6)
        changes.append(float((out - x).abs().mean()))
    assert 0 < changes[0] < changes[1] < changes[2]
