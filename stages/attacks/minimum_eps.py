"""How little it takes: the smallest budget at which the answer changes, image by image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.attacks import perturbations
from stages.attacks.perturbations import margin_loss
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import NoiseSampler, distance
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.params import AttackEval
from stages.models.inference import predict_logits

# Above this no photograph is left to recognise; pixel units, for l2 times the square root of the number of pixel values.
LARGEST = 64 / 255


def largest(norm: str, x: Tensor) -> float:
    """The budget beyond which nothing is looked for."""
    return LARGEST * (1 if norm == "linf" else x[0].numel() ** 0.5)


def bisect(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: NoiseSampler,
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
        broken = margin_loss(score(x_adv), y) > 0
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


def smallest_budgets(
    target: ModelUnderAttack, store: ImageDataset, subset: np.ndarray, table: pd.DataFrame, p: AttackEval, journal: StepCache
) -> pd.DataFrame:
    """minimum_eps.csv: starts from what the table says of an image already."""
    known = {path: rows for path, rows in table.groupby("path")}
    parts = []
    for part, x, y, noise in target.batches(subset):
        images = store.manifest.iloc[target.split.rows[part]][["path", "label"]].reset_index(drop=True)
        low, high = torch.tensor([bracket(known[path], target.norm) for path in images["path"]]).to(x).unbind(1)
        limit = largest(target.norm, x)

        def find(
            x: Tensor = x, y: Tensor = y, noise: NoiseSampler = noise, low: Tensor = low, high: Tensor = high
        ) -> dict[str, Any]:
            with torch.autocast(x.device.type, enabled=False):  # it ends at the boundary, where bfloat16 sees nothing
                how = {"rounds": p.min_eps_rounds, "steps": p.curve_steps, "norm": target.norm}
                found = bisect(target.twin, x, y, noise, low, high, score=partial(predict_logits, target.model), **how)
            return {"eps": found.cpu()}

        eps = journal(f"minimum eps {part[0]}", find)["eps"].numpy()
        found = np.isfinite(eps)
        parts.append(images.assign(eps=np.where(found, eps, limit), found=found.astype(int)))
    return pd.concat(parts, ignore_index=True)
