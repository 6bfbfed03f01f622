"""Each flawed model is caught by the checks meant for it, and a sound model by none."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from stages.attacks.runner import ModelUnderAttack
from stages.attacks.sanity_checks import run_sanity_checks
from stages.core.checks import FAIL, INCONCLUSIVE, PASS, WARN, CheckResult
from stages.core.params_file import load_params
from stages.models.batches import DatasetSplit
from tests.helpers.repository import ROOT

EPS = 0.1  # attacks succeed on some of the toy images, not all
PARAMS = load_params(ROOT / "params.yaml").attack_eval.model_copy(update={"pgd_steps": 10})


def check_model(fabric, dataset, model, norm="linf") -> dict[str, CheckResult]:
    test = DatasetSplit.from_dataset(dataset, "test")
    target = ModelUnderAttack(fabric, model, model, test, norm, batch_size=7, seed=0)
    results = run_sanity_checks(
        target, np.arange(24), np.ones(24, bool), EPS if norm == "linf" else 1.0, PARAMS
    )
    return {result.id: result for result in results}


class WrappedModel(nn.Module):
    """A model whose inputs or logits are transformed."""

    def __init__(self, model, inputs=lambda x: x, logits=lambda z: z):
        super().__init__()
        self.model, self.inputs, self.logits = model, inputs, logits

    def forward(self, x):
        return self.logits(self.model(self.inputs(x)))


class ConstantModel(nn.Module):
    """The same prediction for every image."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).to(x).expand(len(x), 3) + 0 * x.sum((1, 2, 3))[:, None]


class TripledGradient(torch.autograd.Function):
    """The identity with the gradient of another function, as in a defense with a custom backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sound_model_fails_no_check(norm, fabric, trained):
    results = check_model(fabric, *trained, norm)
    assert set(results) == {f"D{i}" for i in (*range(1, 8), *range(12, 17), 22, 23, 24)}
    assert not [result for result in results.values() if result.verdict == FAIL]
    # 24 images can't show the small rates that these checks are about
    inconclusive = {check for check, result in results.items() if result.verdict == INCONCLUSIVE}
    assert inconclusive <= {"D5", "D12", "D13", "D14", "D16", "D22", "D23", "D24"}
    assert all(result.n > 0 for result in results.values())
    assert results["D6"].value < 1e-4


def test_rounded_inputs_fail_gradient_and_unbounded_attack_checks(fabric, trained):
    dataset, model = trained
    results = check_model(
        fabric, dataset, WrappedModel(model, inputs=lambda x: (8 * x).round() / 8)
    )
    assert results["D5"].verdict == FAIL
    assert results["D5"].value == 1.0
    assert results["D12"].verdict == FAIL, (
        "rounding hides the gradient: even an unbounded attack fails"
    )


def test_large_logits_hide_the_gradient_of_cross_entropy_only(fabric, trained):
    dataset, model = trained
    results = check_model(fabric, dataset, WrappedModel(model, logits=lambda z: 1e4 * z))
    assert results["D5"].verdict == FAIL
    assert results["D22"].verdict == WARN, "the margin loss succeeds where cross-entropy can't"


def test_softmax_outputs_are_not_logits(fabric, trained):
    dataset, model = trained
    assert (
        check_model(fabric, dataset, WrappedModel(model, logits=lambda z: z.softmax(1)))[
            "D2"
        ].verdict
        == FAIL
    )
    assert check_model(fabric, dataset, model)["D2"].verdict == PASS


def test_model_in_train_mode_fails(fabric, trained):
    dataset, model = trained
    model.train()
    try:
        results = check_model(fabric, dataset, model)
    finally:
        model.eval()
    assert results["D3"].verdict == FAIL  # dropout
    assert results["D4"].verdict == FAIL


def test_prediction_that_depends_on_the_batch_fails(fabric, trained):
    dataset, model = trained
    results = check_model(
        fabric, dataset, WrappedModel(model, inputs=lambda x: x - x.mean(0, keepdim=True) + 0.5)
    )
    assert results["D3"].verdict == FAIL


def test_gradient_of_another_function_fails(fabric, trained):
    dataset, model = trained
    results = check_model(fabric, dataset, WrappedModel(model, inputs=TripledGradient.apply))
    assert results["D6"].verdict == FAIL
    assert results["D6"].value == pytest.approx(2 / 3, rel=1e-3)


def test_constant_model_fails_gradient_checks(fabric, trained):
    dataset, _ = trained
    results = check_model(fabric, dataset, ConstantModel())
    assert results["D5"].verdict == FAIL
    assert results["D6"].verdict == INCONCLUSIVE  # no gradient, no direction
    assert results["D12"].verdict == FAIL


def test_attack_checks_are_inconclusive_without_correct_predictions(fabric, trained):
    dataset, model = trained
    mislabeled = dataclasses.replace(dataset, labels=(dataset.labels + 1) % 3)
    results = check_model(fabric, mislabeled, model)
    assert {check for check, result in results.items() if result.verdict == INCONCLUSIVE} >= {
        "D12",
        "D13",
        "D16",
        "D22",
    }
