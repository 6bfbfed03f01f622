"""Universal adversarial perturbations: one pattern for all images, which an attacker needs no access to.

Moosavi-Dezfooli et al. (arXiv:1610.08401), by gradient steps on a clamped loss, Shafahi et al. (arXiv:1811.11304): an image
that is misclassified by a clear margin has no gradient any more, so that the pattern is shaped by those that are not.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from stages.attacks.perturbations import l2_norm, margin_loss, steepest_ascent
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import Attack, NoiseSampler
from stages.core.checkpoints import StepCache
from stages.models.inference import frozen_eval_mode

EPOCHS, MIN_STEPS = 5, 30  # over the images; where these are few, more
BATCH = 32  # images per step; no parameter, for it changes the pattern
FIRST_STEP = 0.25  # step size relative to eps, linear to zero
CLAMP = 1.0  # margin loss (logits) above which an image has no gradient


def craft_universal_perturbation(target: ModelUnderAttack, eps: float) -> Tensor:
    """A pattern (3, H, W) within eps that raises the clamped margin loss of all images of the target's split, on the CPU.

    The images must not be those that the pattern is evaluated on.
    """
    shape = target.split.images.shape[1:]  # (H, W, 3)
    delta = torch.zeros(1, 3, *shape[:2], device=target.fabric.device)
    batches = _batches(target)
    for number, positions in enumerate(batches):
        step = eps * FIRST_STEP * (1 - number / len(batches))
        x, y = target.split.load(positions, target.fabric.device)
        with target.fabric.autocast():
            gradient = _loss_gradient(target.fused_model, x, y, delta)
        delta = _within_ball(
            delta + step * steepest_ascent(gradient, norm=target.norm), eps, norm=target.norm
        )
    return delta[0].cpu()


def _batches(target: ModelUnderAttack) -> list[np.ndarray]:
    """Positions of each step's images: all in random order, several times over."""
    rng, size = np.random.default_rng(target.seed), len(target.split)
    epochs = max(EPOCHS, math.ceil(MIN_STEPS / math.ceil(size / BATCH)))
    orders = (rng.permutation(size) for _ in range(epochs))
    return [order[start : start + BATCH] for order in orders for start in range(0, size, BATCH)]


def _loss_gradient(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """Gradient (1, 3, H, W) at delta of the clamped margin loss, summed over the images."""
    delta = delta.detach().requires_grad_(True)
    with frozen_eval_mode(model), torch.enable_grad():
        loss = margin_loss(model((x + delta).clamp(0, 1)), y).clamp_max(CLAMP)
        return torch.autograd.grad(loss.sum(), delta)[0]


def _within_ball(delta: Tensor, eps: float, *, norm: str) -> Tensor:
    """The nearest perturbation (1, 3, H, W) of norm at most eps."""
    return (
        delta.clamp(-eps, eps)
        if norm == "linf"
        else delta * (eps / l2_norm(delta).clamp_min(1e-12)).clamp_max(1)
    )


def cached_universal_perturbation(
    target: ModelUnderAttack, eps: float, cache: StepCache, name: str
) -> Tensor:
    """`craft_universal_perturbation`, or what it returned before an interruption; ``name``: of the model."""
    step = f"universal perturbation of {name}"
    return cache.get_or_compute(step, lambda: {"delta": craft_universal_perturbation(target, eps)})[
        "delta"
    ]


def add_perturbation(delta: Tensor) -> Attack:
    """The attack that adds a pattern (3, H, W), whatever the image, the model and the eps."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler) -> Tensor:
        return (x + delta.to(x)).clamp(0, 1)

    return attack
