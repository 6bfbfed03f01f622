"""The attacks that models are evaluated under, and the check of their results, which trusts none of them.

An attack is ``attack(model, x, y, eps, noise) -> x_adv``: x and x_adv float32 (B, 3, H, W) in [0, 1], eps in pixel units of
the norm that the attack was made for, the model returning logits. ``noise`` belongs to the images, not to the batch, so that
neither batch size nor order changes a result. Attacks are meant for images that are classified correctly; whether x_adv is
worse than x is for the caller to see, who evaluates the model on it.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stages.attacks import perturbations
from stages.attacks.perturbations import l2_norm, margin_loss, normalize_noise, pgd_step_size
from stages.core.params import AttackEvalParams
from stages.models.inference import frozen_eval_mode

# Attacks may run in bfloat16, evaluation runs in float32: an attack stops only at this margin loss (logits).
EARLY_STOP_MARGIN = 0.1
APGD_SAMPLE = (
    1_000_000  # the sample of the images' noise that APGD starts from, and no other attack
)


class NoiseSampler(Protocol):
    """Random numbers of the images of a batch: ``noise("uniform", 0)`` in [-1, 1] or standard ``noise("gaussian", 0)``."""

    def __call__(self, distribution: str, sample: int) -> Tensor:
        """(B, 3, H, W), the same for the same image and sample number."""


Attack = Callable[[nn.Module, Tensor, Tensor, float, NoiseSampler], Tensor]


class BudgetViolationError(ValueError):
    """An attack returned something that isn't an image within its budget."""


def per_image_noise(seed: int, rows: np.ndarray, shape: torch.Size, like: Tensor) -> NoiseSampler:
    """The noise of the images with these row numbers, each of ``shape``, on the device of ``like``."""

    def noise(distribution: str, sample: int) -> Tensor:
        out = torch.empty(len(rows), *shape)
        for image, row in zip(out, rows, strict=True):
            state = np.random.SeedSequence([seed, int(row), sample]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state >> 1))
            if distribution == "uniform":
                image.uniform_(-1, 1, generator=generator)
            else:
                image.normal_(generator=generator)
        return out.to(like)

    return noise


def best_of_restarts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    restarts: int,
    candidate: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """For each image the candidate of the largest margin loss; a restart runs only on images that aren't adversarial yet.

    Args:
        model: returns logits.
        x: (B, 3, H, W).
        y: (B,).
        restarts: how many times ``candidate`` is called at most.
        candidate: (restart, positions (M,)) -> perturbed images (M, 3, H, W).
    """
    best, best_margin = x.clone(), x.new_full((len(x),), -torch.inf)
    for restart in range(restarts):
        active = (best_margin < EARLY_STOP_MARGIN).nonzero().squeeze(1)
        if not len(active):
            break
        x_adv = candidate(restart, active)
        with frozen_eval_mode(model), torch.no_grad():
            margin = margin_loss(model(x_adv), y[active])
        improved = margin > best_margin[active]
        best[active[improved]], best_margin[active[improved]] = x_adv[improved], margin[improved]
    return best


def random_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    distribution: str,
    samples: int,
    norm: str,
) -> Tensor:
    """The worst of several samples of noise: a baseline, never evidence of robustness.

    linf: uniform in [-eps, eps], or Gaussian of standard deviation eps / 2 clipped to ±eps; l2: of norm eps.
    """
    scale = 0.5 if distribution == "gaussian" else 1.0

    def candidate(sample: int, active: Tensor) -> Tensor:
        direction = normalize_noise(noise(distribution, sample)[active] * scale, norm=norm)
        return (x[active] + eps * direction).clamp(0, 1)

    return best_of_restarts(model, x, y, samples, candidate)


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, norm: str
) -> Tensor:
    """One step of size eps (arXiv:1412.6572)."""
    return perturbations.fgsm(model, x, y, eps, norm=norm)


def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    steps: int,
    norm: str,
) -> Tensor:
    """Basic iterative method: PGD from x itself (arXiv:1607.02533)."""
    alpha = pgd_step_size(eps, steps)
    return perturbations.pgd(
        model, x, y, eps, alpha=alpha, steps=steps, norm=norm, early_stop_margin=EARLY_STOP_MARGIN
    )


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    steps: int,
    restarts: int,
    norm: str,
    early_stop_margin: float | None = EARLY_STOP_MARGIN,
) -> Tensor:
    """PGD from random starts (arXiv:1706.06083); early_stop_margin None: every image takes all steps."""

    def candidate(restart: int, active: Tensor | slice) -> Tensor:
        return perturbations.pgd(
            model,
            x[active],
            y[active],
            eps,
            noise("uniform", restart)[active],
            alpha=pgd_step_size(eps, steps),
            steps=steps,
            norm=norm,
            early_stop_margin=early_stop_margin,
        )

    if restarts == 1:  # the best of one needs no comparison, which costs another forward pass
        return candidate(0, slice(None))
    return best_of_restarts(model, x, y, restarts, candidate)


def attack_suite(p: AttackEvalParams, *, norm: str) -> dict[str, tuple[Attack, int]]:
    """The attacks run on every image at ``attack.eps``, with their gradient steps, by name, from cheap to expensive."""
    noise = partial(random_noise, samples=p.noise_draws, norm=norm)
    return {
        "uniform_noise": (partial(noise, distribution="uniform"), 0),
        "gaussian_noise": (partial(noise, distribution="gaussian"), 0),
        "fgsm": (partial(fgsm, norm=norm), 1),
        "bim": (partial(bim, steps=p.bim_steps, norm=norm), p.bim_steps),
        "pgd": (partial(pgd, steps=p.pgd_steps, restarts=p.pgd_restarts, norm=norm), p.pgd_steps),
    }


def eps_sweep_attack(p: AttackEvalParams, *, norm: str) -> tuple[Attack, int]:
    """PGD for the other eps of the robustness curve, with its steps."""
    return partial(pgd, steps=p.curve_steps, restarts=1, norm=norm), p.curve_steps


def perturbation_norm(x: Tensor, x_adv: Tensor, *, norm: str) -> Tensor:
    """Norm of each image's perturbation: (B, 3, H, W) twice -> (B,)."""
    delta = x_adv - x
    return delta.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(delta).flatten()


def quantize_8bit(x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv as an image file of 8 bits holds it; changes are rounded towards x, itself of 8 bits, and so stay within eps."""
    levels = (x_adv - x) * 255
    whole = (
        levels.abs() + 1e-3
    ).floor() * levels.sign()  # 1e-3: eight levels in float32 may be 7.99999
    return (x * 255 + whole).round().clamp(0, 255) / 255


def check_within_budget(
    x: Tensor, x_adv: Tensor, eps: float, *, norm: str, name: str = "attack"
) -> None:
    """Raise BudgetViolationError unless x_adv has x's shape, is finite, lies in [0, 1] and within eps of x (plus 1e-6)."""
    if x_adv.shape != x.shape or x_adv.dtype != torch.float32:
        raise BudgetViolationError(
            f"{name}: expected float32 {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}"
        )
    if not torch.isfinite(x_adv).all():
        raise BudgetViolationError(
            f"{name}: expected finite pixels, got {int((~torch.isfinite(x_adv)).sum())} that are not"
        )
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise BudgetViolationError(
            f"{name}: expected pixels in [0, 1], got [{x_adv.min():g}, {x_adv.max():g}]"
        )
    tolerance = (
        1e-6 if norm == "linf" else 1e-6 + 1e-5 * eps
    )  # a sum over all pixels rounds more than one pixel
    if (moved := perturbation_norm(x, x_adv, norm=norm).max().item()) > eps + tolerance:
        raise BudgetViolationError(
            f"{name}: expected perturbations of at most eps = {eps:g} ({norm}), got {moved:g}"
        )
