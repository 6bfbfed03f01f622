"""Each broken model is caught by the diagnostics meant for it, and a sound one by none."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from stages.attacks.runner import ModelUnderAttack
from stages.attacks.sanity_checks import run_sanity_checks
from stages.core.checks import FAIL, PASS, UNKNOWN, WARN, CheckResult
from stages.core.params import load_all
from stages.models.batches import DatasetSplit
from tests.conftest import SmallNet, toy_store

EPS = 0.1  # breaks some of the toy pictures, not all
PARAMS = dataclasses.replace(load_all("params.yaml").attack_eval, pgd_steps=10)


@pytest.fixture(scope="module")
def trained():
    """A small net that knows the toy classes, so that an attack has something to break."""
    torch.manual_seed(0)
    store, model = toy_store(size=16), SmallNet()
    x, y = DatasetSplit.of(store, "train").batch(np.arange(48), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return store, model.eval()


def probed(fabric, store, model, norm="linf") -> dict[str, CheckResult]:
    target = ModelUnderAttack(fabric, model, model, DatasetSplit.of(store, "test"), norm, 7, 0)
    records = run_sanity_checks(target, np.arange(24), EPS if norm == "linf" else 1.0, PARAMS)
    return {record["id"]: CheckResult(**record) for record in records}


class Around(nn.Module):
    """A model with something done to pictures or logits."""

    def __init__(self, model, pictures=lambda x: x, logits=lambda z: z):
        super().__init__()
        self.model, self.pictures, self.logits = model, pictures, logits

    def forward(self, x):
        return self.logits(self.model(self.pictures(x)))


class Constant(nn.Module):
    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).to(x).expand(len(x), 3) + 0 * x.sum((1, 2, 3))[:, None]


class Straight(torch.autograd.Function):
    """Rounding with the gradient of something else: what a defence with a custom backward does."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sound_model_fails_nothing(norm, fabric, trained):
    found = probed(fabric, *trained, norm)
    assert set(found) == {f"D{i}" for i in (*range(1, 8), *range(12, 17), 22, 23, 24)}
    assert not [one for one in found.values() if one.verdict in (FAIL, UNKNOWN)]
    assert all(one.n > 0 for one in found.values())
    assert found["D6"].value < 1e-4


def test_rounding_hides_the_gradient(fabric, trained):
    store, model = trained
    found = probed(fabric, store, Around(model, pictures=lambda x: (8 * x).round() / 8))
    assert found["D5"].verdict == FAIL
    assert found["D5"].value == 1.0
    assert found["D12"].verdict == FAIL, "an unbounded attack that fails is no attack"


def test_large_logits_hide_the_gradient_from_cross_entropy_only(fabric, trained):
    store, model = trained
    found = probed(fabric, store, Around(model, logits=lambda z: 1e4 * z))
    assert found["D5"].verdict == FAIL
    assert found["D22"].verdict == WARN, "the margin breaks what cross-entropy can't"


def test_softmax_outputs(fabric, trained):
    store, model = trained
    assert probed(fabric, store, Around(model, logits=lambda z: z.softmax(1)))["D2"].verdict == FAIL
    assert probed(fabric, store, model)["D2"].verdict == PASS


def test_train_mode(fabric, trained):
    store, model = trained
    model.train()
    try:
        found = probed(fabric, store, model)
    finally:
        model.eval()
    assert found["D3"].verdict == FAIL  # dropout
    assert found["D4"].verdict == FAIL


def test_an_answer_that_depends_on_the_batch(fabric, trained):
    store, model = trained
    found = probed(fabric, store, Around(model, pictures=lambda x: x - x.mean(0, keepdim=True) + 0.5))
    assert found["D3"].verdict == FAIL


def test_a_gradient_that_is_not_the_functions(fabric, trained):
    store, model = trained
    found = probed(fabric, store, Around(model, pictures=Straight.apply))
    assert found["D6"].verdict == FAIL
    assert found["D6"].value == pytest.approx(2 / 3, rel=1e-3)


def test_a_constant_model(fabric, trained):
    store, _ = trained
    found = probed(fabric, store, Constant())
    assert found["D5"].verdict == FAIL
    assert found["D6"].verdict == UNKNOWN  # no gradient, no direction
    assert found["D12"].verdict == FAIL


def test_a_model_that_is_always_wrong_has_little_to_say(fabric, trained):
    store, model = trained
    wrong = dataclasses.replace(store, labels=(store.labels + 1) % 3)
    found = probed(fabric, wrong, model)
    assert {id for id, one in found.items() if one.verdict == UNKNOWN} >= {"D12", "D13", "D16", "D22"}
