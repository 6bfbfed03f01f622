"""The attacks that the models are measured under, and the verifier that doesn't trust them.

An attack is ``attack(model, x, y, eps, noise) -> x_adv``, x and x_adv (B, 3, H, W) in [0, 1], eps in pixel units of the norm
that it was made for (``linf`` | ``l2``), the model returning logits. ``noise(distribution, draw)`` gives (B, 3, H, W) random
numbers that belong to the images, not to the batch: so neither batch size nor order changes a result. Attacks are meant for
images that the model gets right; whether the result is worse than the image itself is for the caller to see, who scores it.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from stages.attacks import perturbations
from stages.attacks.perturbations import length, margin_loss, normalize_noise
from stages.core.params import AttackEval
from stages.models.inference import frozen_eval_mode

NoiseSampler = Callable[[str, int], Tensor]
Attack = Callable[[nn.Module, Tensor, Tensor, float, NoiseSampler], Tensor]

# Crafting may run in bfloat16, scoring runs in float32: an image counts as broken while crafting only with this lead (logits).
EARLY_STOP_MARGIN = 0.1


class BudgetViolationError(ValueError):
    """An attack returned something that isn't an image within its budget."""


def per_image_noise(seed: int, rows: np.ndarray, shape: torch.Size, like: Tensor) -> NoiseSampler:
    """The noise of the images with these row numbers: ``uniform`` in [-1, 1] or standard ``gaussian``."""

    def noise(distribution: str, draw: int) -> Tensor:
        out = torch.empty(len(rows), *shape)
        for image, row in zip(out, rows, strict=True):
            state = np.random.SeedSequence([seed, int(row), draw]).generate_state(1, np.uint64)[0]
            source = torch.Generator().manual_seed(int(state >> 1))
            if distribution == "uniform":
                image.uniform_(-1, 1, generator=source)
            else:
                image.normal_(generator=source)
        return out.to(like)

    return noise


def best_of_restarts(model: nn.Module, x: Tensor, y: Tensor, tries: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Of every try the image at which a wrong class leads by most; a try sees only what isn't broken yet.

    tries: functions of the positions (M,) still to break, returning candidates (M, 3, H, W).
    """
    best, best_lead = x.clone(), x.new_full((len(x),), -torch.inf)
    for attempt in tries:
        todo = (best_lead < EARLY_STOP_MARGIN).nonzero().squeeze(1)
        if not len(todo):
            break
        candidate = attempt(todo)
        with frozen_eval_mode(model), torch.no_grad():
            ahead = margin_loss(model(candidate), y[todo])
        better = ahead > best_lead[todo]
        best[todo[better]], best_lead[todo[better]] = candidate[better], ahead[better]
    return best


def uniform_noise(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, draws: int, norm: str = "linf"
) -> Tensor:
    """The worst of several draws of uniform noise in [-eps, eps], for l2 of length eps: a baseline, never evidence."""
    tries = (lambda t, d=d: (x[t] + eps * normalize_noise(noise("uniform", d)[t], norm)).clamp(0, 1) for d in range(draws))
    return best_of_restarts(model, x, y, tries)


def gaussian_noise(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, draws: int, norm: str = "linf"
) -> Tensor:
    """The worst of several draws of Gaussian noise of deviation eps / 2, cut off at ± eps, for l2 of length eps: a baseline."""
    tries = (lambda t, d=d: (x[t] + eps * normalize_noise(noise("gaussian", d)[t] / 2, norm)).clamp(0, 1) for d in range(draws))
    return best_of_restarts(model, x, y, tries)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, norm: str = "linf") -> Tensor:
    """One step of size eps (arXiv:1412.6572)."""
    return perturbations.fgsm(model, x, y, eps, norm=norm)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, steps: int, restarts: int, norm: str = "linf"
) -> Tensor:
    """PGD, random starts, step 2.5 eps / steps (arXiv:1706.06083); restarts=0 is BIM: one run, from x itself (1607.02533)."""

    how = {"alpha": 2.5 * eps / steps, "steps": steps, "norm": norm, "early_stop_margin": EARLY_STOP_MARGIN}
    if restarts <= 1:  # the worst of one needs no comparison, which costs another forward
        return perturbations.pgd(model, x, y, eps, noise("uniform", 0) if restarts else None, **how)
    tries = (lambda t, d=d: perturbations.pgd(model, x[t], y[t], eps, noise("uniform", d)[t], **how) for d in range(restarts))
    return best_of_restarts(model, x, y, tries)


def attack_suite(p: AttackEval, norm: str = "linf") -> dict[str, tuple[Attack, int]]:
    """The attacks run on every image at ``attack.eps``, with their steps, by name, from cheap to dear."""
    return {
        "uniform_noise": (partial(uniform_noise, draws=p.noise_draws, norm=norm), 0),
        "gaussian_noise": (partial(gaussian_noise, draws=p.noise_draws, norm=norm), 0),
        "fgsm": (partial(fgsm, norm=norm), 1),
        "bim": (partial(pgd, steps=p.bim_steps, restarts=0, norm=norm), p.bim_steps),
        "pgd": (partial(pgd, steps=p.pgd_steps, restarts=p.pgd_restarts, norm=norm), p.pgd_steps),
    }


def eps_sweep_attack(p: AttackEval, norm: str = "linf") -> tuple[Attack, int]:
    """PGD for the other budgets of the curve, with its steps."""
    return partial(pgd, steps=p.curve_steps, restarts=1, norm=norm), p.curve_steps


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """How far each image is from its original: (B, 3, H, W) twice -> (B,)."""
    delta = x_adv - x
    return delta.abs().flatten(1).amax(1) if norm == "linf" else length(delta).flatten()


def quantize_8bit(x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv as a picture file can hold it; changes are rounded towards x, itself of 8 bits, so that the budget still holds."""
    levels = (x_adv - x) * 255
    whole = (levels.abs() + 1e-3).floor() * levels.sign()  # 1e-3: eight levels in float32 may be 7.99999
    return (x * 255 + whole).round().clamp(0, 255) / 255


def verify(x: Tensor, x_adv: Tensor, eps: float, name: str = "attack", norm: str = "linf") -> None:
    """Raise BudgetViolationError unless x_adv has x's shape, is finite, lies in [0, 1] and within eps of x (plus 1e-6)."""
    if x_adv.shape != x.shape or x_adv.dtype != torch.float32:
        raise BudgetViolationError(f"{name}: expected float32 {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}")
    if not torch.isfinite(x_adv).all():
        raise BudgetViolationError(f"{name}: expected finite pixels, got {int((~torch.isfinite(x_adv)).sum())} that are not")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise BudgetViolationError(f"{name}: expected pixels in [0, 1], got [{x_adv.min():g}, {x_adv.max():g}]")
    allowed = 1e-6 if norm == "linf" else 1e-6 + 1e-5 * eps  # a sum over all pixels rounds more than one pixel
    if (moved := distance(x_adv, x, norm).max().item()) > eps + allowed:
        what = "pixels moved" if norm == "linf" else "images moved in l2"
        raise BudgetViolationError(f"{name}: expected {what} by at most eps = {eps:g}, got {moved:g}")
