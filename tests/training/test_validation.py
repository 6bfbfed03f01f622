"""The metrics of an epoch, and which of them show catastrophic overfitting."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.attacks.gradient import fgsm, loss_and_gradient
from stages.core.norms import Budget
from stages.models.batches import DatasetSplit
from stages.training.validation import RobustValidation, StandardValidation, validate
from tests.helpers.models import LinearLogits
from tests.helpers.training_runs import EPS


def gray_images(labels) -> DatasetSplit:
    """Images whose pixels all are 128."""
    count = len(labels)
    return DatasetSplit(np.full((count, 4, 4, 3), 128, np.uint8), labels, np.arange(count))


def model_with_margin(weight, margin) -> LinearLogits:
    """Of a gray image of class 1; within eps, an attack can lower it by ||weight||_1 eps."""
    return LinearLogits(weight, margin - (128 / 255 * weight.sum()).item())


def test_validation_attack_takes_all_steps(fabric):
    """The first step already misclassifies; the loss is that of the last one."""
    weight, eps = torch.rand(48) + 0.1, 0.1
    reach = eps * weight.sum().item()
    model = model_with_margin(weight, 0.1 * reach)  # negative after one step from anywhere
    validation = StandardValidation(
        gray_images(np.ones(4, int)), Budget.of("linf", eps), steps=8, images=4
    )
    metrics = validate(fabric, model, validation, seed=0, batch_size=4)
    assert (metrics["val_clean_accuracy"], metrics["val_robust_accuracy"]) == (1, 0)
    expected = F.softplus(torch.tensor(0.9 * reach)).item()
    assert metrics["val_robust_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 5])
def test_validation_attack_reaches_the_edge_of_the_ball_from_anywhere_in_it(steps, fabric):
    """No attack on a linear model can do better."""
    weight, eps = torch.rand(48) + 0.1, 0.1
    model = model_with_margin(weight, 0.99 * eps * weight.sum().item())
    validation = StandardValidation(
        gray_images(np.ones(8, int)), Budget.of("linf", eps), steps, images=8
    )
    assert validate(fabric, model, validation, seed=0, batch_size=8)["val_robust_accuracy"] == 0


def test_attacked_images_are_of_every_class_though_files_come_sorted_by_class(fabric):
    labels = np.repeat([0, 1], [30, 10])
    validation = StandardValidation(gray_images(labels), Budget.of("linf", 0.1), steps=1, images=20)
    always_first = LinearLogits(torch.zeros(48), -1.0)  # attacks change nothing
    metrics = validate(fabric, always_first, validation, seed=0, batch_size=7)
    assert metrics["val_robust_accuracy"] == metrics["val_clean_accuracy"] == 0.75


ROBUST = RobustValidation(gray_images(np.zeros(0, int)), Budget.of("linf", EPS), steps=2, images=8)


def row(pgd, fgsm=None, eps=EPS):
    accuracy = {"val_robust_accuracy": pgd, "val_fgsm_accuracy": pgd if fgsm is None else fgsm}
    return {"eps": eps, **accuracy}


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
        ([row(0.5, eps=EPS / 2), row(0.4, 0.9, EPS)], ""),  # eps still increased
        ([row(0.5, eps=EPS / 2), row(0.2)], ""),
        ([row(0.5), row(0.4, 0.9), row(0.5)], ""),  # recovered
    ],
)
def test_catastrophic_overfitting_criteria(history, reason):
    assert ROBUST.stop_reason(history) == (f"catastrophic overfitting: {reason}" if reason else "")
    metrics = ROBUST.history_metrics(history)
    assert metrics["catastrophic_overfitting"] == bool(reason)
    best = max(row["val_robust_accuracy"] for row in history)
    assert metrics["robust_overfitting"] == pytest.approx(best - history[-1]["val_robust_accuracy"])


def test_image_metrics_match_their_definitions(small_net, images):
    x, y = images
    noise = torch.rand_like(x) * 2 - 1
    metrics = ROBUST.image_metrics(small_net, x, y, noise)
    nearby = (x + EPS * noise).clamp(0, 1)
    a, b = (loss_and_gradient(small_net, z, y)[2].flatten(1) for z in (x, nearby))
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert torch.allclose(metrics["val_gradient_cosine"], cosine, atol=1e-5)
    fgsm_prediction = small_net(fgsm(small_net, x, y, Budget.of("linf", EPS))).argmax(1)
    assert torch.equal(metrics["val_fgsm_accuracy"], fgsm_prediction == y)
