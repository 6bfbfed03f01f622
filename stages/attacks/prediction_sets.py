"""Attacks on conformal prediction sets: push the label out of the set, or enlarge the set.

Other attacks aim at the prediction and stop once it is wrong; a set may still contain the label.
These take all their steps, and know the threshold: 1 minus the smallest probability of a class in
a set.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.attack import Attack, Noise
from stages.attacks.gradient import pgd_step_size
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams

ObjectiveFunction = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,), to be maximized


class Objective(nn.Module):
    """An objective as the logits (0, objective) of two classes.

    PGD on class 0 maximizes it: the margin is the objective, and the gradient of the cross-entropy
    points where that of the objective does.
    """

    def __init__(self, model: nn.Module, objective: ObjectiveFunction) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        value = self.objective(self.model(x))
        return torch.stack([torch.zeros_like(value), value], dim=1)


def maximize(
    model: nn.Module,
    x: Tensor,
    objective: ObjectiveFunction,
    budget: Budget,
    noise: Noise,
    steps: int,
) -> Tensor:
    """PGD on the objective from a random start: the visited point where it is largest."""
    return gradient.pgd(
        Objective(model, objective),
        x,
        torch.zeros(len(x), dtype=torch.long, device=x.device),
        budget,
        noise("uniform", 0),
        alpha=pgd_step_size(budget.eps, steps),
        steps=steps,
    )


def exclude_label(steps: int) -> Attack:
    """The attack that pushes the label out of a set, whatever its threshold."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
    ) -> Tensor:
        """PGD on the score of the label, all steps."""

        def objective(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, y, reduction="none")

        return maximize(model, x, objective, budget, noise, steps)

    return Attack("exclude_label", "Exclude the label", "iterative", run, steps)


def missing_classes(logits: Tensor, threshold: float) -> Tensor:
    """(B, K) -> (B,): what the likeliest classes lack in log probability to be all in the set.

    Of as many classes as can be: no three have a probability of more than 1/3. 0 where the set
    holds them.
    """
    smallest = max(1 - threshold, torch.finfo(torch.float32).tiny)
    possible = min(int(1 / smallest), logits.shape[1])
    likeliest = F.log_softmax(logits.float(), dim=1).topk(possible).values
    return (math.log(smallest) - likeliest).clamp_min(0).sum(1)


def enlarge_set(threshold: float, steps: int) -> Attack:
    """The attack that puts as many classes as it can into the sets of this threshold."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
    ) -> Tensor:
        """PGD on what the likeliest classes outside the set lack, all steps."""

        def objective(logits: Tensor) -> Tensor:
            return -missing_classes(logits, threshold)

        return maximize(model, x, objective, budget, noise, steps)

    return Attack("enlarge_set", "Enlarge the set", "iterative", run, steps)
