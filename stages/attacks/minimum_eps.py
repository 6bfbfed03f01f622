"""Minimum adversarial perturbation: per image the smallest eps at which an attack succeeds (an upper bound)."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.attacks import perturbations
from stages.attacks.perturbations import is_adversarial, pgd_step_size
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import NoiseSampler, perturbation_norm
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.params import AttackEvalParams

# Above this no image is left to recognize; pixel units, for l2 times the square root of the number of pixel values.
MAX_EPS = 64 / 255


def max_eps(x: Tensor, *, norm: str) -> float:
    """The eps beyond which nothing is looked for."""
    return MAX_EPS * (1 if norm == "linf" else x[0].numel() ** 0.5)


def bisect_eps(
    target: ModelUnderAttack,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    rounds: int,
    steps: int,
) -> Tensor:
    """Bisection for the smallest eps at which PGD succeeds.

    PGD starts from the last success, scaled into the budget, so that few steps suffice. It runs in the fast precision; whether
    it succeeded is decided in float32.

    Args:
        target: the model; its images are not used.
        x: (B, 3, H, W).
        y: (B,).
        start: (B, 3, H, W) noise that the first round starts from.
        low: (B,) eps at which no attack succeeded.
        high: (B,) eps > 0 at which one did, or inf if none did.
        rounds: bisection steps.
        steps: of PGD.

    Returns:
        (B,) the smallest eps found; inf where none was.
    """
    norm, best, low = target.norm, high.clone(), low.clone()
    limit = torch.full_like(high, max_eps(x, norm=norm))
    for _ in range(rounds):
        middle = (low + torch.minimum(best, limit)) / 2  # (B,)
        eps = middle[:, None, None, None]
        alpha = pgd_step_size(eps, steps)
        with target.fabric.autocast():
            x_adv = perturbations.pgd(
                target.fused_model, x, y, eps, start, alpha=alpha, steps=steps, norm=norm
            )
        success = is_adversarial(target.model, x_adv, y)
        best = torch.where(
            success, torch.minimum(perturbation_norm(x, x_adv, norm=norm), middle), best
        )
        low = torch.where(success, low, middle)
        start = torch.where(success[:, None, None, None], (x_adv - x) / eps, start)
    return best


def initial_bracket(rows: pd.DataFrame, *, norm: str) -> tuple[float, float]:
    """The largest eps at which PGD failed on an image, and the smallest norm of its adversarial examples.

    From its rows in the table of predictions; the second is inf where no attack succeeded.
    """
    wrong = rows["label"] != rows["prediction"]
    high = rows.loc[wrong, norm].min() if wrong.any() else float("inf")
    failed = rows.loc[~wrong & (rows["attack"] == "pgd") & (rows["eps"] < high), "eps"]
    return (float(failed.max()) if len(failed) else 0.0), float(high)


def find_minimum_eps(
    target: ModelUnderAttack,
    dataset: ImageDataset,
    positions: np.ndarray,
    predictions: pd.DataFrame,
    p: AttackEvalParams,
    cache: StepCache,
) -> pd.DataFrame:
    """minimum_eps.csv for the images at these positions; starts from what ``predictions`` tells of an image already."""
    paths, rows_of = (
        dataset.manifest["path"].iloc[target.split.rows].to_numpy(),
        dict(list(predictions.groupby("path"))),
    )

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        brackets = [initial_bracket(rows_of[path], norm=target.norm) for path in paths[batch]]
        low, high = torch.tensor(brackets).to(x).T
        eps, searched = high.clone(), high > 0  # 0: misclassified without a perturbation
        if searched.any():
            parts = (values[searched] for values in (x, y, noise("uniform", 0), low, high))
            eps[searched] = bisect_eps(target, *parts, rounds=p.min_eps_rounds, steps=p.curve_steps)
        return {"eps": eps}

    eps = cache.get_or_compute("minimum eps", lambda: target.map_batches(positions, compute))[
        "eps"
    ].numpy()
    found = np.isfinite(eps)
    limit = max_eps(target.load(positions[:1])[0], norm=target.norm)
    images = dataset.manifest.iloc[target.split.rows[positions]][["path", "label"]].reset_index(
        drop=True
    )
    return images.assign(eps=np.where(found, eps, limit), found=found.astype(int))
