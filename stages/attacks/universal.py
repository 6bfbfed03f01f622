"""Universal adversarial perturbations: one for all images.

Moosavi-Dezfooli et al. (arXiv:1610.08401), by gradient steps on a clamped loss, Shafahi et al.
(arXiv:1811.11304): an image that is misclassified by a clear margin has no gradient any more, so
that the perturbation is shaped by those that are not.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from stages.attacks.attack import Attack, Noise
from stages.attacks.gradient import margin_loss
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.models.inference import attached_logits, frozen_eval_mode

EPOCHS, MIN_STEPS = 5, 30  # over the images; where these are few, more
BATCH = 32  # images per step; no parameter, for it changes the perturbation
FIRST_STEP = 0.25  # step size relative to ε, linear to zero
CLAMP = 1.0  # margin loss (logits) above which an image has no gradient


def universal_perturbation(
    model: nn.Module,
    load: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    images: int,
    budget: Budget,
    seed: int,
) -> Tensor:
    """A perturbation (3, H, W) within the budget that raises the clamped margin loss of all images.

    Args:
        model: returns logits.
        load: positions (B,) of images -> x (B, 3, H, W), y (B,). Not the images that the
            perturbation is evaluated on.
        images: how many there are.
        budget: of the perturbation.
        seed: of the order of the images.
    """
    delta: Tensor | None = None
    batches = _batches(images, seed)
    for number, positions in enumerate(batches):
        step = budget.eps * FIRST_STEP * (1 - number / len(batches))
        x, y = load(positions)
        delta = torch.zeros_like(x[:1]).contiguous() if delta is None else delta
        gradient = _loss_gradient(model, x, y, delta)
        moved = delta + step * budget.norm.steepest_ascent(gradient)
        delta = budget.norm.clip(moved, budget.eps)
    assert delta is not None  # there are images
    return delta[0]


def _batches(images: int, seed: int) -> list[np.ndarray]:
    """Positions of each step's images: all in random order, several times over."""
    rng, batches = np.random.default_rng(seed), []
    for _ in range(max(EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / BATCH)))):
        order = rng.permutation(images)
        batches += [order[start : start + BATCH] for start in range(0, images, BATCH)]
    return batches


def _loss_gradient(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """Gradient (1, 3, H, W) at delta of the clamped margin loss, summed over the images."""
    delta = delta.detach().requires_grad_(True)
    with frozen_eval_mode(model), torch.enable_grad():
        logits = attached_logits(model, (x + delta).clamp(0, 1))
        loss = margin_loss(logits, y).clamp_max(CLAMP)
        return torch.autograd.grad(loss.sum(), delta)[0]


def add_perturbation(delta: Tensor, *, of_other_model: bool = False) -> Attack:
    """The attack that adds a perturbation (3, H, W), whatever the image, the model and the ε."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
    ) -> Tensor:
        """One perturbation for all images, from validation images (arXiv:1610.08401, 1811.11304).

        At attack time the attacker needs neither the image nor the model.
        """
        return (x + delta.to(x)).clamp(0, 1)

    if of_other_model:
        return Attack("universal_transfer", "Universal (transfer)", "universal", run)
    return Attack("universal", "Universal", "universal", run)
