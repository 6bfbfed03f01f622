"""The parts of AutoAttack: equal to the library's own where that runs, and right where it doesn't."""

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from stages.attacks import autoattack
from stages.attacks.suite import verify
from stages.core.params import load_all
from stages.models.inference import frozen_eval_mode

EPS = {"linf": 0.012, "l2": 0.09}


def toy(classes: int, images: int = 12, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A smooth random net that is right about every picture, some near the boundary."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 24), nn.GELU(), nn.Linear(24, classes)).eval()
    x = torch.rand(images, 3, 6, 6)
    return model, x, model(x).argmax(1)


def draws(x: torch.Tensor, seed: int = 0):
    """Noise as the library draws it: for a whole batch, from the global generator."""

    def noise(distribution: str, draw: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return 2 * torch.rand(x.shape) - 1 if distribution == "uniform" else torch.randn(x.shape)

    return noise


def parts(classes: int, norm: str = "linf", steps: int = 20, queries: int = 200):
    return autoattack.parts(classes, steps=steps, queries=queries, norm=norm, seed=0)


def test_the_lists_are_the_valid_ones_and_their_name_is_not_autoattack():
    assert list(parts(2)) == ["apgd_ce", "apgd_margin", "fab_t", "square"]
    assert list(parts(3)) == ["apgd_ce", "apgd_dlr", "apgd_margin", "fab_t", "square"]
    assert list(parts(4)) == list(parts(10)) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert autoattack.ensemble_name(3) == "aa-k3"
    record = autoattack.record(3, 16, load_all("params.yaml").attack_eval, seed=0)
    assert record["name"] == "aa-k3"
    assert record["attacks"] == list(parts(3))
    assert record["library"] == "pyautoattack 0.2.0"


def test_the_library_itself_stops_at_three_classes():
    """The reason for the list of our own; when this fails, the library has learned it."""
    model, x, y = toy(3)
    with pytest.raises(IndexError):
        AutoAttack(model, eps=1e-4, seed=0).run_standard_evaluation(x, y)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_equals_the_librarys_own_standard_for_ten_classes(norm):
    model, x, y = toy(10)
    oracle = AutoAttack(model, eps=EPS[norm], norm=autoattack.NORMS[norm], seed=0)
    theirs = oracle.run_standard_evaluation(x, y)[0]
    broken_by_them = model(theirs).argmax(1) != y
    ours, left = x.clone(), torch.arange(len(x))
    for attack in parts(10, norm, steps=100, queries=5000).values():
        found = attack(model, x[left], y[left], EPS[norm], draws(x[left]))
        verify(x[left], found, EPS[norm], norm=norm)
        ours[left] = found
        left = left[model(found).argmax(1) == y[left]]
        if not len(left):
            break
    broken_by_us = model(ours).argmax(1) != y
    assert 0 < broken_by_them.sum() < len(x), "a budget that says nothing"
    assert torch.equal(broken_by_us, broken_by_them)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_from_the_librarys_start_gives_the_librarys_picture(norm):
    model, x, y = toy(10)
    oracle = AutoAttack(model, eps=EPS[norm], norm=autoattack.NORMS[norm], seed=0)
    oracle.apgd.loss = "ce"
    theirs = oracle.apgd.perturb(x, y)
    ours = parts(10, norm, steps=100)["apgd_ce"](model, x, y, EPS[norm], draws(x))
    assert (theirs != x).any()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("classes", "scale"), [(2, 8), (3, 3), (5, 1)])
def test_every_part_keeps_its_budget_and_leaves_generator_and_model_alone(classes, scale, norm):
    eps = scale * EPS[norm]
    model, x, y = toy(classes)
    x = x.contiguous(memory_format=torch.channels_last)
    broken = {}
    for name, attack in parts(classes, norm, steps=30).items():
        torch.manual_seed(7)
        before = torch.get_rng_state()
        noise = torch.rand(x.shape)
        torch.set_rng_state(before)
        found = attack(model, x, y, eps, lambda kind, draw, n=noise: 2 * n - 1)
        verify(x, found, eps, name, norm)
        broken[name] = int((model(found).argmax(1) != y).sum())
        assert torch.equal(torch.get_rng_state(), before), name
        assert all(p.grad is None and p.requires_grad for p in model.parameters()), name
    assert max(broken.values()) > 0
    del broken["square"]  # few queries, no gradient
    assert max(broken.values()) - min(broken.values()) <= 3, broken  # on so smooth a net the others find much the same


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_part_depends_on_the_batch(norm):
    model, x, y = toy(3)
    noise = torch.rand(x.shape) * 2 - 1
    for name, attack in parts(3, norm, steps=15).items():
        whole = attack(model, x, y, EPS[norm], lambda kind, draw: noise)
        for i in (0, 5, 11):
            alone = attack(model, x[i : i + 1], y[i : i + 1], EPS[norm], lambda kind, draw, i=i: noise[i : i + 1])
            assert torch.allclose(whole[i], alone[0], atol=1e-4), (name, i)


def test_margin_apgd_solves_the_linear_case():
    """Two classes, a linear score: broken just above |w.x + b| / ||w||_1, not below (pixels far enough from 0 and 1)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).eval()
    x = torch.full((1, 3, 4, 4), 0.5)
    with torch.no_grad():
        y = model(x).argmax(1)
        weight, bias = (model[1].weight[y] - model[1].weight[1 - y])[0], (model[1].bias[y] - model[1].bias[1 - y])[0]
        smallest = ((weight @ x.flatten() + bias) / weight.abs().sum()).item()
    with frozen_eval_mode(model):
        for name in ("apgd_margin", "fab_t"):
            attack = parts(2, steps=50)[name]
            for eps, expected in ((0.97 * smallest, False), (1.06 * smallest, True)):
                found = attack(model, x, y, eps, lambda kind, draw: torch.zeros_like(x))
                assert (model(found).argmax(1) != y).item() is expected, (name, eps)
