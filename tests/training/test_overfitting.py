"""Catastrophic overfitting is detected, and nothing else is taken for it."""

import numpy as np
import pytest
import torch

from stages.attacks.perturbations import fgsm, loss_and_gradient
from stages.models.batches import DatasetSplit
from stages.training.methods import make_training_method
from stages.training.overfitting import RobustValidation
from tests.helpers.datasets import toy_dataset
from tests.helpers.training_runs import EPS, NO_AUGMENTATION, train, with_params

NO_IMAGES = DatasetSplit(
    np.empty((0, 4, 4, 3), np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
)
VALIDATION = RobustValidation(NO_IMAGES, "linf", EPS, steps=2, images=8)


def row(pgd, fgsm=None, eps=EPS):
    return {
        "eps": eps,
        "val_robust_accuracy": pgd,
        "val_fgsm_accuracy": pgd if fgsm is None else fgsm,
    }


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([row(0.5), row(0.5, 0.64)], ""),
        ([row(0.5), row(0.5, 0.66)], "accuracy 66% under FGSM, 50% under PGD"),
        ([row(0.5), row(0.51, 0.9)], ""),  # still becoming robust
        ([row(0.5, 0.9)], ""),
        ([row(0.5), row(0.31)], ""),
        ([row(0.5), row(0.29)], "accuracy under PGD 29%, 50% in the epoch before"),
        ([row(0.6), row(0.45), row(0.3)], ""),  # a slow decline is robust overfitting
        ([row(0.5, eps=EPS / 2), row(0.4, 0.9, EPS)], ""),  # eps still grew
        ([row(0.5, eps=EPS / 2), row(0.2)], ""),
        ([row(0.5), row(0.4, 0.9), row(0.5)], ""),  # recovered
    ],
)
def test_catastrophic_overfitting_criteria(history, reason):
    assert VALIDATION.stop_reason(history) == (
        f"catastrophic overfitting: {reason}" if reason else ""
    )
    metrics = VALIDATION.history_metrics(history)
    assert metrics["catastrophic_overfitting"] == bool(reason)
    best = max(row["val_robust_accuracy"] for row in history)
    assert metrics["robust_overfitting"] == pytest.approx(best - history[-1]["val_robust_accuracy"])


def test_image_metrics_of_linear_model(linear):
    x = torch.rand(32, 3, 4, 4) * 0.5 + 0.25
    y = linear(x).argmax(1)
    metrics = VALIDATION.image_metrics(linear, x, y, torch.rand_like(x) * 2 - 1)
    assert torch.allclose(metrics["val_gradient_cosine"], torch.ones(32), atol=1e-5), (
        "the same gradient everywhere"
    )
    assert torch.equal(
        metrics["val_fgsm_accuracy"], linear(fgsm(linear, x, y, EPS, norm="linf")).argmax(1) == y
    )


def test_image_metrics_match_their_definitions(small_net, images):
    x, y = images
    noise = torch.rand_like(x) * 2 - 1
    metrics = VALIDATION.image_metrics(small_net, x, y, noise)
    at_x, nearby = (
        loss_and_gradient(small_net, z, y)[2].flatten(1) for z in (x, (x + EPS * noise).clamp(0, 1))
    )
    cosine = (at_x * nearby).sum(1) / at_x.norm(dim=1) / nearby.norm(dim=1)
    assert torch.allclose(metrics["val_gradient_cosine"], cosine, atol=1e-5)
    assert torch.equal(
        metrics["val_fgsm_accuracy"],
        small_net(fgsm(small_net, x, y, EPS, norm="linf")).argmax(1) == y,
    )


def test_catastrophic_overfitting_stops_training_and_keeps_best_epoch(fabric, tmp_path, capsys):
    eps = (
        48 / 255
    )  # so large that FGSM is a poor approximation of the worst case: FGSM training overfits here
    p = with_params(
        epochs=20,
        lr=0.1,
        augment=NO_AUGMENTATION,
        method="fgsm",
        batch_size=32,
        val_images=96,
        val_steps=10,
        eps_ramp=0.0,
        clip_norm=0.0,
    )
    method, dataset = make_training_method(p, norm="linf", eps=eps), toy_dataset(384, 16)
    result = train(
        fabric, tmp_path / "c", p, method, dataset=dataset, validation=RobustValidation, eps=eps
    )
    last = result.history[-1]
    assert len(result.history) < p.epochs
    assert [row["catastrophic_overfitting"] for row in result.history] == [0.0] * (
        len(result.history) - 1
    ) + [1.0]
    assert last["val_fgsm_accuracy"] > last["val_robust_accuracy"] + 0.15
    best = max(row["val_robust_accuracy"] for row in result.history)
    assert result.history[result.epoch - 1]["val_robust_accuracy"] == best
    assert last["robust_overfitting"] == pytest.approx(best - last["val_robust_accuracy"])
    stopped = f"stopped after epoch {len(result.history)}/20, keeping epoch {result.epoch}: catastrophic overfitting: "
    assert stopped in capsys.readouterr().out
    resumed = train(
        fabric, tmp_path / "c", p, method, dataset=dataset, validation=RobustValidation, eps=eps
    )
    assert resumed.history == result.history, "a stopped training is not continued"
