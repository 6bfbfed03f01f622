"""How little it takes: the smallest budget at which the answer changes, image by image."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from stages.core import perturbations
from stages.core.attacks import Noise, distance
from stages.core.perturbations import lead

# Above this no photograph is left to recognise; pixel units, for l2 times the square root of the number of pixel values.
LARGEST = 64 / 255


def largest(norm: str, x: Tensor) -> float:
    """The budget beyond which nothing is looked for."""
    return LARGEST * (1 if norm == "linf" else x[0].numel() ** 0.5)


def bisect(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    low: Tensor,
    high: Tensor,
    *,
    rounds: int,
    steps: int,
    norm: str,
    score: Callable[[Tensor], Tensor],
) -> Tensor:
    """(B,) the smallest eps found at which ``score`` (logits) is wrong, an upper bound of the true one; inf: none found.

    Bisection between ``low`` (B,), where no attack succeeded, and ``high`` (B,), where one did, or inf if none did. PGD starts
    from the last success, shrunk into the budget, so that few steps suffice.
    """
    best, low = high.clone(), low.clone()
    limit = torch.full_like(high, largest(norm, x))
    start = noise("uniform", 0)
    for _ in range(rounds):
        eps = (low + torch.minimum(best, limit)) / 2  # (B,)
        budget = eps[:, None, None, None]
        x_adv = perturbations.pgd(model, x, y, budget, start, alpha=2.5 * budget / steps, steps=steps, norm=norm)
        broken = lead(score(x_adv), y) > 0
        best = torch.where(broken, torch.minimum(distance(x_adv, x, norm), eps), best)
        low = torch.where(broken, low, eps)
        start = torch.where(broken[:, None, None, None], (x_adv - x) / budget, start)
    return best


def bracket(rows: pd.DataFrame, norm: str) -> tuple[float, float]:
    """What the predictions of one image say: the largest budget that PGD failed at, and the smallest distance of a picture that
    is wrong (inf: there is none)."""
    wrong = rows["label"] != rows["prediction"]
    high = rows.loc[wrong, norm].min() if wrong.any() else float("inf")
    failed = rows.loc[~wrong & (rows["attack"] == "pgd") & (rows["eps"] < high), "eps"]
    return (float(failed.max()) if len(failed) else 0.0), float(high)
