"""The metrics of an epoch."""

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
    clean_margin = 0.1 * eps * weight.sum().item()  # negative after the first step, whatever the start
    model = LinearLogits(weight, clean_margin - (128 / 255 * weight.sum()).item())
    metrics = validate(fabric, model, Validation(split, "linf", eps, steps=8, images=4), seed=0, batch_size=4)
    assert metrics["val_robust_accuracy"] == 0
    assert metrics["val_clean_accuracy"] == 1
    expected = F.softplus(torch.tensor(eps * weight.sum().item() - clean_margin)).item()
    assert abs(metrics["val_robust_loss"] - expected) < 1e-4
