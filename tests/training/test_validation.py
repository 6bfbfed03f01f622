"""The metrics of an epoch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.models.batches import DatasetSplit
from stages.training.validation import Validation, validate
from tests.helpers.models import LinearLogits


def test_validation_attack_takes_all_steps(fabric):
    """The first step already misclassifies; the loss is that of the last one.

    For a linear model the margin shrinks by ||w||_1 times the perturbation, up to the edge of the ball.
    """
    images = torch.full((4, 4, 4, 3), 128, dtype=torch.uint8).numpy()
    split = DatasetSplit(images, torch.ones(4, dtype=torch.long).numpy(), torch.arange(4).numpy())
    weight, eps = torch.rand(48) + 0.1, 0.1
    clean_margin = (
        0.1 * eps * weight.sum().item()
    )  # negative after the first step, whatever the start
    model = LinearLogits(weight, clean_margin - (128 / 255 * weight.sum()).item())
    metrics = validate(
        fabric, model, Validation(split, "linf", eps, steps=8, images=4), seed=0, batch_size=4
    )
    assert metrics["val_robust_accuracy"] == 0
    assert metrics["val_clean_accuracy"] == 1
    expected = F.softplus(torch.tensor(eps * weight.sum().item() - clean_margin)).item()
    assert abs(metrics["val_robust_loss"] - expected) < 1e-4


def test_attacked_images_are_of_every_class_though_files_come_sorted_by_class(fabric):
    labels = np.repeat([0, 1], [30, 10])
    split = DatasetSplit(np.full((40, 4, 4, 3), 128, np.uint8), labels, np.arange(40))
    always_first = LinearLogits(torch.zeros(48), -1.0)  # attacks change nothing
    metrics = validate(
        fabric,
        always_first,
        Validation(split, "linf", 0.1, steps=1, images=20),
        seed=0,
        batch_size=7,
    )
    assert metrics["val_robust_accuracy"] == metrics["val_clean_accuracy"] == 0.75


@pytest.mark.parametrize("steps", [1, 5])
def test_validation_attack_reaches_the_edge_of_the_ball_from_anywhere_in_it(steps, fabric):
    """No attack on a linear model can do better: the margin is less than ||w||_1 eps."""
    split = DatasetSplit(np.full((8, 4, 4, 3), 128, np.uint8), np.ones(8, int), np.arange(8))
    weight, eps = torch.rand(48) + 0.1, 0.1
    bias = 0.99 * eps * weight.sum().item() - (128 / 255 * weight.sum()).item()
    validation = Validation(split, "linf", eps, steps=steps, images=8)
    assert (
        validate(fabric, LinearLogits(weight, bias), validation, seed=0, batch_size=8)[
            "val_robust_accuracy"
        ]
        == 0
    )
