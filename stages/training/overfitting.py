"""Two ways in which adversarial training fails, checked after every epoch on validation images.

Catastrophic overfitting: trained against one step, a model becomes robust to that step alone. FGSM then hardly succeeds, PGD
nearly always, and the gradients of the loss around an image no longer agree (Wong et al., arXiv:2001.03994; Andriushchenko
and Flammarion, arXiv:2007.02617). Robust overfitting: robust accuracy falls again while the training loss still does (Rice et
al., arXiv:2002.11569); it costs nothing but time, because the best epoch is kept.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.attacks.perturbations import loss_and_gradient, project, random_start, steepest_ascent
from stages.models.inference import frozen_eval_mode
from stages.training.validation import EpochMetrics, Validation

MAX_PGD_DROP = 0.20  # of accuracy under PGD since the epoch before
MAX_FGSM_PGD_GAP = 0.15  # of accuracy under FGSM over that under PGD


class RobustValidation(Validation):
    """Validation of adversarial training: selects by robust accuracy, stops at catastrophic overfitting."""

    def score(self, row: EpochMetrics) -> tuple[float, ...]:
        """Robust accuracy; at a tie the lower loss under attack."""
        return row["val_robust_accuracy"], -row["val_robust_loss"]

    def image_metrics(
        self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Whether FGSM fails, and the cosine of the loss gradients at x and at a random point in the ball, (B,) each.

        Both need the gradient at x, so the two cost two gradients and one forward pass.
        """
        with frozen_eval_mode(model):
            _, _, at_x = loss_and_gradient(model, x, y)
            _, _, nearby = loss_and_gradient(
                model, random_start(x, self.eps, noise, norm=self.norm), y
            )
            x_adv = project(
                x, x + self.eps * steepest_ascent(at_x, norm=self.norm), self.eps, norm=self.norm
            )
            with torch.no_grad():
                prediction = model(x_adv).argmax(1)
        return {
            "val_fgsm_accuracy": prediction == y,
            "val_gradient_cosine": F.cosine_similarity(at_x.flatten(1), nearby.flatten(1)),
        }

    def history_metrics(self, history: Sequence[EpochMetrics]) -> EpochMetrics:
        """How far robust accuracy is below its best, and 1 for catastrophic overfitting.

        Validation attacks within the full eps in every epoch, so epochs compare.
        """
        row = history[-1]
        return {
            "robust_overfitting": max(r["val_robust_accuracy"] for r in history)
            - row["val_robust_accuracy"],
            "catastrophic_overfitting": float(bool(self.stop_reason(history))),
        }

    def stop_reason(self, history: Sequence[EpochMetrics]) -> str:
        """What shows that the last epoch overfitted catastrophically; empty if nothing does.

        Two epochs are compared that both ended at the full eps: while it still grows, the model is attacked with more than it
        was trained for, and accuracies may swing without overfitting. FGSM accuracy far above PGD accuracy counts when PGD
        accuracy doesn't increase: a model that is still becoming robust shows the gap, too.
        """
        if len(history) < 2 or any(row["eps"] < self.eps for row in history[-2:]):
            return ""
        row = history[-1]
        before, pgd, fgsm = (
            history[-2]["val_robust_accuracy"],
            row["val_robust_accuracy"],
            row["val_fgsm_accuracy"],
        )
        if fgsm - pgd > MAX_FGSM_PGD_GAP and pgd <= before:
            return f"catastrophic overfitting: accuracy {fgsm:.0%} under FGSM, {pgd:.0%} under PGD"
        if before - pgd > MAX_PGD_DROP:
            return f"catastrophic overfitting: accuracy under PGD {pgd:.0%}, {before:.0%} in the epoch before"
        return ""
