"""Validation after every epoch: clean and under attack, and which epoch is the best.

Adversarial training fails in two ways. Catastrophic overfitting: trained against a single step, a
model becomes robust to that step alone; FGSM then hardly succeeds, PGD nearly always, and the
gradients of the loss around an image no longer agree (Wong et al., arXiv:2001.03994;
Andriushchenko and Flammarion, arXiv:2007.02617). Robust overfitting: robust accuracy falls again
while the training loss still decreases (Rice et al., arXiv:2002.11569); it costs nothing but time,
because the best epoch is kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from stages.attacks.gradient import loss_and_gradient, pgd, pgd_step_size
from stages.core.norms import Budget
from stages.models.batches import DatasetSplit
from stages.models.inference import frozen_eval_mode

EpochMetrics = dict[str, float]
MAX_PGD_DROP = 0.20  # of accuracy under PGD since the epoch before
MAX_FGSM_PGD_GAP = 0.15  # of accuracy under FGSM over that under PGD


@dataclass(frozen=True)
class Validation(ABC):
    """What is measured after each epoch, and what follows from it."""

    split: DatasetSplit  # the validation images; all of them are evaluated clean
    budget: Budget  # of the attack, PGD
    steps: int
    images: int  # how many are attacked at most, each class in its proportion
    criterion: ClassVar[str]  # what the score is, in words

    @abstractmethod
    def score(self, row: EpochMetrics) -> tuple[float, ...]:
        """The weights of the epoch with the largest score are selected."""

    def image_metrics(
        self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Further metrics of attacked images, (B,) each; their means are reported."""
        return {}

    def history_metrics(self, history: Sequence[EpochMetrics]) -> EpochMetrics:
        """Further metrics of the last epoch that depend on those before."""
        return {}

    def stop_reason(self, history: Sequence[EpochMetrics]) -> str:
        """Why training must stop after the last epoch; empty if it need not."""
        return ""


class StandardValidation(Validation):
    """Of standard training."""

    criterion = "validation loss"

    def score(self, row: EpochMetrics) -> tuple[float, ...]:
        """Minus the clean loss: accuracy on few images is too coarse to tell epochs apart."""
        return (-row["val_loss"],)


class RobustValidation(Validation):
    """Of adversarial training: stops at catastrophic overfitting."""

    criterion = "robust accuracy"

    def score(self, row: EpochMetrics) -> tuple[float, ...]:
        """Robust accuracy; at a tie the lower loss under attack."""
        return row["val_robust_accuracy"], -row["val_robust_loss"]

    def image_metrics(
        self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Whether FGSM fails; the cosine of the gradients at x and at a random point of the ball.

        FGSM's gradient is the one at x: both metrics together cost two gradients.
        """
        _, _, at_x = loss_and_gradient(model, x, y)
        start = self.budget.random_start(x, noise)
        _, _, nearby = loss_and_gradient(model, start, y)
        moved = x + self.budget.eps * self.budget.norm.steepest_ascent(at_x)
        with torch.no_grad():
            logits = model(self.budget.project(x, moved))
        return {
            "val_fgsm_accuracy": logits.argmax(1) == y,
            "val_gradient_cosine": F.cosine_similarity(at_x.flatten(1), nearby.flatten(1)),
        }

    def history_metrics(self, history: Sequence[EpochMetrics]) -> EpochMetrics:
        """How far robust accuracy is below its best, and 1 for catastrophic overfitting.

        Every epoch is attacked within the full eps, so epochs compare.
        """
        robust = [row["val_robust_accuracy"] for row in history]
        return {
            "robust_overfitting": max(robust) - robust[-1],
            "catastrophic_overfitting": float(bool(self.stop_reason(history))),
        }

    def stop_reason(self, history: Sequence[EpochMetrics]) -> str:
        """What shows that the last epoch overfitted catastrophically; empty if nothing does.

        Two epochs are compared, both trained at the full eps: while eps still increases, the
        attack is stronger than what the model was trained for, and accuracies may swing without
        overfitting. A gap between FGSM and PGD counts unless PGD accuracy increases: a model that
        is still becoming robust shows that gap, too.
        """
        if len(history) < 2 or any(row["eps"] < self.budget.eps for row in history[-2:]):
            return ""
        before, pgd = (row["val_robust_accuracy"] for row in history[-2:])
        fgsm = history[-1]["val_fgsm_accuracy"]
        if fgsm - pgd > MAX_FGSM_PGD_GAP and pgd <= before:
            return f"catastrophic overfitting: accuracy {fgsm:.0%} under FGSM, {pgd:.0%} under PGD"
        if before - pgd > MAX_PGD_DROP:
            return (
                f"catastrophic overfitting: accuracy under PGD {pgd:.0%}, "
                f"{before:.0%} in the epoch before"
            )
        return ""


def balanced_accuracy(logits: Tensor, y: Tensor) -> float:
    """Mean recall of the classes that occur: (B, K), (B,)."""
    correct = (logits.argmax(1) == y).float()
    return torch.stack([correct[y == label].mean() for label in y.unique()]).mean().item()


def validate(
    fabric: Fabric, model: nn.Module, validation: Validation, seed: int, batch_size: int
) -> EpochMetrics:
    """Losses and accuracies on the validation images, in eval mode.

    The attack has the same eps and starts from the same noise in every epoch.
    """
    split, budget = validation.split, validation.budget
    clean: list[tuple[Tensor, Tensor]] = []  # logits (B, K) and y (B,) of each batch
    attacked: list[tuple[Tensor, Tensor]] = []
    extra: list[dict[str, Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    chosen = split.stratified_positions(validation.images, seed)
    with frozen_eval_mode(model), fabric.autocast():
        for start in range(0, len(split), batch_size):
            positions = np.arange(start, min(start + batch_size, len(split)))
            x, y = split.load(positions, fabric.device)
            with torch.no_grad():
                clean.append((model(x), y))
            rows = np.flatnonzero(np.isin(positions, chosen))
            if not len(rows):
                continue
            x, y = x[rows], y[rows]
            noise = torch.rand(x.shape, generator=generator).mul_(2).sub_(1).to(x)
            # No early stop: a loss at the decision boundary would flatter the weaker epoch.
            alpha, steps = pgd_step_size(budget.eps, validation.steps), validation.steps
            x_adv = pgd(model, x, y, budget, noise, alpha=alpha, steps=steps)
            with torch.no_grad():
                attacked.append((model(x_adv), y))
            extra.append(validation.image_metrics(model, x, y, noise))
    logits, y = (torch.cat(parts) for parts in zip(*clean, strict=True))
    logits_adv, y_adv = (torch.cat(parts) for parts in zip(*attacked, strict=True))
    return {
        "val_loss": F.cross_entropy(logits, y).item(),
        "val_clean_accuracy": (logits.argmax(1) == y).float().mean().item(),
        "val_balanced_accuracy": balanced_accuracy(logits, y),
        "val_robust_loss": F.cross_entropy(logits_adv, y_adv).item(),
        "val_robust_accuracy": (logits_adv.argmax(1) == y_adv).float().mean().item(),
        **{
            name: torch.cat([batch[name] for batch in extra]).float().mean().item()
            for name in extra[0]
        },
    }
