"""Validation after every epoch: clean and under attack, in eval mode."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from stages.attacks.perturbations import pgd, pgd_step_size
from stages.models.batches import DatasetSplit
from stages.models.inference import frozen_eval_mode

EpochMetrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """What is measured after each epoch, and what follows from it; as it stands, for standard training.

    Attributes:
        split: the validation images; all of them are evaluated clean.
        norm: of the attack, PGD.
        eps: of the attack.
        steps: of the attack.
        images: how many are attacked at most, each class in its proportion.
    """

    split: DatasetSplit
    norm: str
    eps: float
    steps: int
    images: int

    def score(self, row: EpochMetrics) -> tuple[float, ...]:
        """The weights of the epoch with the largest one are kept: accuracy on few images is too coarse to tell epochs apart."""
        return (-row["val_loss"],)

    def image_metrics(
        self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Name -> (B,) further metrics of attacked images, reported by their means."""
        return {}

    def history_metrics(self, history: Sequence[EpochMetrics]) -> EpochMetrics:
        """Further metrics of the last epoch that depend on those before."""
        return {}

    def stop_reason(self, history: Sequence[EpochMetrics]) -> str:
        """Why training must stop after the last epoch; empty if it need not."""
        return ""


def validate(
    fabric: Fabric, model: nn.Module, validation: Validation, seed: int, batch_size: int
) -> EpochMetrics:
    """Losses and accuracies on the validation images, attacked within the same eps and from the same noise every time."""
    labels: list[Tensor] = []
    clean: list[Tensor] = []
    labels_adv: list[Tensor] = []
    attacked: list[Tensor] = []
    extra: list[dict[str, Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    chosen = validation.split.stratified_positions(validation.images, seed)
    with frozen_eval_mode(model), fabric.autocast():
        for start in range(0, len(validation.split), batch_size):
            positions = np.arange(start, min(start + batch_size, len(validation.split)))
            x, y = validation.split.load(positions, fabric.device)
            labels.append(y)
            with torch.no_grad():
                clean.append(model(x))
            if len(rows := np.flatnonzero(np.isin(positions, chosen))):
                x, y = x[rows], y[rows]
                noise = torch.rand(x.shape, generator=generator).mul_(2).sub_(1).to(x)
                # No early stop: a loss at the decision boundary would flatter the weaker epoch.
                alpha, steps = pgd_step_size(validation.eps, validation.steps), validation.steps
                x_adv = pgd(
                    model,
                    x,
                    y,
                    validation.eps,
                    noise,
                    alpha=alpha,
                    steps=steps,
                    norm=validation.norm,
                )
                with torch.no_grad():
                    attacked.append(model(x_adv))
                labels_adv.append(y)
                extra.append(validation.image_metrics(model, x, y, noise))
    y, logits, y_adv, logits_adv = (
        torch.cat(batches) for batches in (labels, clean, labels_adv, attacked)
    )
    return {
        "val_loss": F.cross_entropy(logits, y).item(),
        "val_clean_accuracy": (logits.argmax(1) == y).float().mean().item(),
        "val_balanced_accuracy": float(balanced_accuracy_score(y.cpu(), logits.argmax(1).cpu())),
        "val_robust_loss": F.cross_entropy(logits_adv, y_adv).item(),
        "val_robust_accuracy": (logits_adv.argmax(1) == y_adv).float().mean().item(),
        **{
            name: torch.cat([batch[name] for batch in extra]).float().mean().item()
            for name in extra[0]
        },
    }
