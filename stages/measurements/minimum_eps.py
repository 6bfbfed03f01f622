"""Minimum adversarial perturbation: per image the smallest ε at which an attack succeeds.

An upper bound of the true minimum. Bisection with PGD, which starts from what the suite found.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.attacks import gradient
from stages.attacks.gradient import is_adversarial, pgd_step_size
from stages.core.norms import Budget
from stages.core.predictions import is_correct
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.target import Batch, TargetModel

TABLE = Table(
    "minimum_eps",
    {
        "path": (str, "image"),
        "label": (str, "class"),
        "eps": (float, "smallest ε at which it was misclassified; 0 = without a perturbation"),
        "found": (int, "0 = not even at this ε, the largest that was tried"),
    },
)


def bisect(
    target: TargetModel,
    batch: Batch,
    budget: Budget,
    brackets: Tensor,
    *,
    limit: float,
    rounds: int,
    steps: int,
) -> Tensor:
    """Bisection for the smallest ε at which PGD succeeds.

    PGD starts from the last success, scaled into the budget, so that few steps suffice. It runs in
    the fast precision; whether it succeeded is decided in float32.

    Args:
        target: the model.
        batch: B images.
        budget: its norm counts.
        brackets: (B, 2) ε at which no attack succeeded, and ε > 0 at which one did, inf if none.
        limit: ε beyond which nothing is looked for.
        rounds: bisection steps.
        steps: of PGD.

    Returns:
        (B,) the smallest ε found; inf where none was.
    """
    x, y, start = batch.x, batch.y, batch.noise("uniform", 0)
    low, best = brackets.unbind(1)
    for _ in range(rounds):
        middle = (low + best.clamp_max(limit)) / 2  # (B,)
        eps = middle[:, None, None, None]
        alpha = pgd_step_size(eps, steps)
        with target.fabric.autocast():
            x_adv = gradient.pgd(
                target.fused_model, x, y, budget.with_eps(eps), start, alpha=alpha, steps=steps
            )
        success = is_adversarial(target.model, x_adv, y)
        size = budget.norm.size(x_adv - x)
        best = torch.where(success, torch.minimum(size, middle), best)
        low = torch.where(success, low, middle)
        start = torch.where(success[:, None, None, None], (x_adv - x) / eps, start)
    return best


def initial_bracket(rows: pd.DataFrame, norm: str) -> tuple[float, float]:
    """The largest ε at which PGD failed on an image, and the smallest norm of its examples.

    From its rows of predictions.csv; the second is inf where no attack succeeded.
    """
    wrong = ~is_correct(rows)
    high = rows.loc[wrong, norm].min() if wrong.any() else float("inf")
    failed = rows.loc[~wrong & (rows["attack"] == "pgd") & (rows["eps"] < high), "eps"]
    return (float(failed.max()) if len(failed) else 0.0), float(high)


def search_batch(
    target: TargetModel, batch: Batch, context: Context, limit: float
) -> dict[str, Tensor]:
    """The smallest ε found for each image."""
    norm = context.attack.budget.norm
    rows_of = dict(list(context.predictions.groupby("path")))
    paths = context.images(batch.positions, "path")["path"]
    brackets = torch.tensor([initial_bracket(rows_of[path], norm.name) for path in paths])
    brackets = brackets.to(batch.x)
    eps = brackets[:, 1].clone()
    searched = eps > 0  # 0: misclassified without a perturbation
    if searched.any():
        eps[searched] = bisect(
            target,
            batch.where(searched),
            context.attack.budget,
            brackets[searched],
            limit=limit,
            rounds=context.p.min_eps_rounds,
            steps=context.p.curve_steps,
        )
    return {"eps": eps}


def run(context: Context) -> dict[str, Any]:
    """minimum_eps.csv."""
    target, budget, positions = context.target, context.attack.budget, context.subset
    # No smaller than what the attacks tried: a bracket that ends below it would never narrow.
    tried = float(context.predictions["eps"].max())
    limit = max(budget.norm.limit(target.load(positions[:1]).x[0].numel()), tried)
    result = context.steps.run("minimum eps", target, positions, search_batch, context, limit)
    eps = result["eps"].numpy()
    found = np.isfinite(eps)
    images = context.images(positions, "path", "label")
    rows = images.assign(eps=np.where(found, eps, limit), found=found.astype(int))
    return {TABLE.name: rows}


MEASUREMENT = Measurement(run, (TABLE,))
