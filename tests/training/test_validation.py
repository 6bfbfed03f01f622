"""How an epoch is judged."""

import torch

from stages.models.batches import DatasetSplit
from stages.training.validation import Validation, judge
from tests.conftest import Linear


def test_the_attacked_loss_is_that_of_all_steps_also_where_the_first_suffice(fabric):
    """Of a linear model the lead grows by ||w||_1 times the way, to the edge of the ball."""
    images = torch.full((4, 4, 4, 3), 128, dtype=torch.uint8).numpy()
    split = DatasetSplit(images, torch.ones(4, dtype=torch.long).numpy(), torch.arange(4).numpy())
    weight, eps = torch.rand(48) + 0.1, 0.1
    lead_of_right = 0.1 * eps * weight.sum().item()  # broken after the first step, whatever the start
    model = Linear(weight, lead_of_right - (128 / 255 * weight.sum()).item())
    found = judge(fabric, model, Validation(split, "linf", eps, 8, 4, score=lambda row: ()), 0, 4)
    whole = torch.tensor(eps * weight.sum().item() - lead_of_right)
    assert found["val_robust_accuracy"] == 0
    assert found["val_clean_accuracy"] == 1
    assert abs(found["val_robust_loss"] - torch.nn.functional.softplus(whole).item()) < 1e-4
