"""Two ways in which adversarial training goes wrong, watched every epoch on validation photographs.

Catastrophic overfitting: trained against one step, a model learns to resist that step alone. FGSM then breaks little, PGD
everything, and the loss has no common slope around a picture (Wong et al., arXiv:2001.03994; Andriushchenko and Flammarion,
arXiv:2007.02617). Robust overfitting: robust accuracy falls again while the training loss still does (Rice et al.,
arXiv:2002.11569); it costs nothing but time, because the best epoch is kept.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.attacks.perturbations import ascent, loss_and_gradient, normalize_noise, project
from stages.models.inference import frozen_eval_mode
from stages.training.validation import Row

LARGEST_DROP, LARGEST_GAP = 0.20, 0.15  # of accuracy under PGD since the epoch before; of FGSM over PGD


def measures(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor, norm: str) -> dict[str, Tensor]:
    """Of each picture (B,): whether it withstands FGSM, and the cosine of the loss gradients at x and at a random point nearby.

    Both need the gradient at x, so the two cost two gradients and an answer for each picture.
    """
    with frozen_eval_mode(model):
        _, _, here = loss_and_gradient(model, x, y)
        _, _, nearby = loss_and_gradient(model, project(x + eps * normalize_noise(noise, norm), x, eps, norm), y)
        with torch.no_grad():
            answer = model(project(x + eps * ascent(here, norm), x, eps, norm)).argmax(1)
    return {
        "val_fgsm_accuracy": answer == y,
        "val_gradient_cosine": F.cosine_similarity(here.flatten(1), nearby.flatten(1)),
    }


def watch(history: Sequence[Row], eps: float) -> Row:
    """Columns for the last row: how far robust accuracy is below its best, and 1 if the model has overfitted catastrophically.

    Validation attacks with the full budget ``eps`` in every epoch, so epochs compare.
    """
    row = history[-1]
    return {
        "robust_overfitting": max(r["val_robust_accuracy"] for r in history) - row["val_robust_accuracy"],
        "catastrophic_overfitting": float(bool(alarm(history, eps))),
    }


def alarm(history: Sequence[Row], eps: float) -> str:
    """What shows that the last epoch overfitted catastrophically, in words; empty if nothing does.

    Two epochs are compared that both ended with training's full budget: while it still grows, the model is attacked with more
    than it was trained for, and accuracies may swing without a collapse. FGSM far ahead of PGD counts when PGD gains nothing:
    a model that is still learning to resist at all shows the gap too.
    """
    if len(history) < 2 or any(row["eps"] < eps for row in history[-2:]):
        return ""
    before, pgd, fgsm = history[-2]["val_robust_accuracy"], history[-1]["val_robust_accuracy"], history[-1]["val_fgsm_accuracy"]
    if fgsm - pgd > LARGEST_GAP and pgd <= before:
        return f"catastrophic overfitting: {fgsm:.0%} withstand FGSM, {pgd:.0%} PGD"
    if before - pgd > LARGEST_DROP:
        return f"catastrophic overfitting: {pgd:.0%} withstand PGD, {before:.0%} in the epoch before"
    return ""
