"""Check what an attack returns, whatever the attack; rounding to 8 bits."""

import torch
from torch import Tensor

from stages.core.norms import Budget


class BudgetViolationError(ValueError):
    """An attack returned something that isn't an image within its budget."""


def check_within_budget(x: Tensor, x_adv: Tensor, budget: Budget, name: str = "attack") -> None:
    """Raise BudgetViolationError unless x_adv has x's shape, lies in [0, 1] and within the budget.

    Args:
        x: (B, 3, H, W) float32.
        x_adv: what the attack returned.
        budget: its norm's rounding error is tolerated.
        name: of the attack, for the message.
    """
    if x_adv.shape != x.shape or x_adv.dtype != torch.float32:
        raise BudgetViolationError(
            f"{name}: expected float32 {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}"
        )
    if not torch.isfinite(x_adv).all():
        invalid = int((~torch.isfinite(x_adv)).sum())
        raise BudgetViolationError(f"{name}: expected finite pixels, got {invalid} that are not")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise BudgetViolationError(
            f"{name}: expected pixels in [0, 1], got [{x_adv.min():g}, {x_adv.max():g}]"
        )
    size = budget.norm.size(x_adv - x).max().item()
    if size > budget.eps + budget.norm.tolerance(budget.eps):
        raise BudgetViolationError(
            f"{name}: expected perturbations within {budget}, got one of norm {size:g}"
        )


def quantize_8bit(x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv as an image file of 8 bits holds it.

    Changes are rounded towards x, itself of 8 bits, and so stay within ε.
    """
    levels = (x_adv - x) * 255
    # 1e-3: eight levels in float32 may be 7.99999
    whole = (levels.abs() + 1e-3).floor() * levels.sign()
    return (x * 255 + whole).round().clamp(0, 255) / 255
