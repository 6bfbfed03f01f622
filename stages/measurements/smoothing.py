"""A lower bound of robustness: randomized smoothing of the evaluated model, in L2.

The smoothed classifier g answers with the class that the model f gives most copies of an image with
Gaussian noise (Cohen et al., arXiv:1902.02918). If the label's share of all such copies is at least
p > 1/2, then g gives the label within the radius σ Φ⁻¹(p), whatever the perturbation. p is the
lower end of the Clopper-Pearson interval at level ALPHA. Cohen et al. choose the class with further
copies; here it is the label, for what isn't certified to be the label isn't correct anyway.

Next to it an upper bound for the same g: PGD on the mean softmax of a few copies (Salman et al.,
arXiv:1906.04584). An image counts as broken when g is sure of another class there, so that
certified <= true <= attacked holds at each radius but for an error of ALPHA per image.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.gradient import margin_loss, pgd_step_size
from stages.attacks.verifier import check_within_budget
from stages.core.norms import Budget
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.target import Batch, TargetModel
from stages.models.inference import predict_logits

COPIES, ALPHA = 200, 0.001  # of these, all of one class certify 1.8 σ
RADII = (0.5, 1.0, 1.5)  # relative to σ
ATTACK_COPIES = 8  # whose mean softmax PGD follows
# Of the images' noise: each vote, and the attack, draws its own.
VOTE_SAMPLE, ATTACK_SAMPLE, ATTACKED_SAMPLE = 2_000_000, 3_000_000, 4_000_000
SETTINGS = "smoothing_settings"
TABLE = Table(
    "smoothing",
    {
        "path": (str, "image"),
        "label": (str, "class"),
        "radius": (float, "L2 norm within which PGD attacked; 0: no attack"),
        "votes": (int, "noisy copies classified as the label"),
        "prediction": (str, "class of most copies"),
        "abstains": (int, "1: the second class has nearly as many copies"),
        "certified_radius": (float, "L2 norm within which the label is certified; 0: not"),
    },
)


class SmoothedModel(nn.Module):
    """The mean softmax over noisy copies of each image, as logarithms.

    Args:
        model: returns logits.
        noise: (copies, B, 3, H, W) that is added to the images of a batch.
    """

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, K)."""
        logits = self.model((x + self.noise).flatten(0, 1))  # (copies * B, K)
        by_copy = logits.log_softmax(1).unflatten(0, self.noise.shape[:2])
        return by_copy.logsumexp(0) - math.log(len(self.noise))


def certified_radius(votes: np.ndarray, copies: int, sigma: float) -> np.ndarray:
    """The L2 radius around each image within which g gives a class, but for an error of ALPHA.

    Args:
        votes: (N,) how many of the copies have that class.
        copies: of each image.
        sigma: standard deviation of their noise.

    Returns:
        (N,), 0 where nothing is certified.
    """
    lowest = stats.beta.ppf(ALPHA, votes, copies - votes + 1)  # NaN for no votes
    return sigma * stats.norm.ppf(np.fmax(lowest, 0.5))


def abstains(votes: np.ndarray) -> np.ndarray:
    """Whether two classes are too close to tell which one g gives: (N, K) -> (N,).

    Two-sided binomial test at level ALPHA, as Cohen et al. (and Hung and Fithian 2019).
    """
    second, first = np.sort(votes, axis=1)[:, -2:].T
    p = 2 * stats.binom.sf(first - 1, first + second, 0.5)
    return p > ALPHA


def broken(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether g is sure of another class than the label: (N, K), (N,) -> (N,)."""
    return (votes.argmax(1) != labels) & ~abstains(votes)


def count_votes(target: TargetModel, x: Tensor, batch: Batch, sigma: float, sample: int) -> Tensor:
    """How many noisy copies of x (B, 3, H, W) the model gives to each class, in float32: (B, K)."""
    votes = []
    for i in range(sample, sample + COPIES):
        logits = predict_logits(target.model, x + sigma * batch.noise("gaussian", i))
        votes.append(nn.functional.one_hot(logits.argmax(1), logits.shape[1]))
    return torch.stack(votes).sum(0)


def vote_batch(target: TargetModel, batch: Batch, sigma: float) -> dict[str, Tensor]:
    """The votes on the images themselves."""
    return {"votes": count_votes(target, batch.x, batch, sigma, VOTE_SAMPLE)}


def attack_batch(
    target: TargetModel, batch: Batch, classes: int, sigma: float, budget: Budget, steps: int
) -> dict[str, Tensor]:
    """The votes on what PGD finds.

    They are counted where it misleads the copies that it follows, and 0 elsewhere.
    """
    rows = torch.arange(len(batch.x), device=batch.x.device)
    votes = batch.y.new_zeros(len(rows), classes)
    for part in rows.split(max(1, target.batch_size // ATTACK_COPIES)):
        images = batch.where(part)
        x_adv, misled = attack_smoothed(target, images, sigma, budget, steps)
        if misled.any():
            x_adv, images = x_adv[misled], images.where(misled)
            votes[part[misled]] = count_votes(target, x_adv, images, sigma, ATTACKED_SAMPLE)
    return {"votes": votes}


def attack_smoothed(
    target: TargetModel, batch: Batch, sigma: float, budget: Budget, steps: int
) -> tuple[Tensor, Tensor]:
    """PGD on the mean softmax: x_adv (B, 3, H, W), and whether it misleads those copies (B,)."""
    samples = range(ATTACK_SAMPLE, ATTACK_SAMPLE + ATTACK_COPIES)
    noise = torch.stack([sigma * batch.noise("gaussian", i) for i in samples])
    model = SmoothedModel(target.fused_model, noise)
    alpha = pgd_step_size(budget.eps, steps)
    with target.fabric.autocast():
        x_adv = gradient.pgd(model, batch.x, batch.y, budget, alpha=alpha, steps=steps)
        misled = margin_loss(predict_logits(model, x_adv), batch.y) > 0
    check_within_budget(batch.x, x_adv, budget, "pgd on the smoothed model")
    return x_adv, misled


def to_rows(context: Context, votes: np.ndarray, radius: float) -> pd.DataFrame:
    """Rows of TABLE for votes (N, K) on what PGD found within the radius."""
    target, classes = context.target, np.array(context.dataset.classes)
    of_label = votes[np.arange(len(votes)), target.labels.numpy()]
    rows = context.images(target.everything, "path", "label")
    return rows.assign(
        radius=radius,
        votes=of_label,
        prediction=classes[votes.argmax(1)],
        abstains=abstains(votes).astype(int),
    )


def run(context: Context) -> dict[str, Any]:
    """smoothing.csv, a row for each image and radius, and smoothing_settings.json."""
    target, steps, sigma = context.target, context.p.curve_steps, context.p.smoothing_sigma
    everything, labels = target.everything, target.labels.numpy()
    voted = context.steps.run("smoothing: votes", target, everything, vote_batch, sigma)
    votes = voted["votes"].numpy()
    certified = certified_radius(votes[np.arange(len(votes)), labels], COPIES, sigma)
    tables = [to_rows(context, votes, 0.0)]
    for relative in RADII:
        budget = Budget.of("l2", relative * sigma)
        left = np.flatnonzero(~broken(votes, labels))
        if len(left):
            step = f"smoothing: PGD {budget.short}"
            found = context.steps.run(
                step, target, left, attack_batch, votes.shape[1], sigma, budget, steps
            )
            attacked = found["votes"].numpy()
            votes = votes.copy()
            misled = attacked.any(1)
            votes[left[misled]] = attacked[misled]
        else:
            context.steps.skip()
        tables.append(to_rows(context, votes, budget.eps))
    rows = pd.concat([table.assign(certified_radius=certified) for table in tables])
    settings = {
        "sigma": sigma,
        "copies": COPIES,
        "alpha": ALPHA,
        "attack_copies": ATTACK_COPIES,
        "attack_steps": steps,
    }
    return {TABLE.name: rows[list(TABLE.columns)], SETTINGS: settings}


MEASUREMENT = Measurement(
    run,
    (TABLE,),
    steps=lambda context: 1 + len(RADII),
    applies=lambda context: context.p.smoothing_sigma > 0,
)
