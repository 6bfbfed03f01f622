"""Random noise within the budget: a baseline, never evidence of robustness."""

import torch
from torch import Tensor, nn

from stages.attacks.attack import EARLY_STOP_MARGIN, Noise, attack
from stages.attacks.gradient import keep_worse
from stages.attacks.white_box import margin_of
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams


@attack("Uniform noise", "noise")
def uniform_noise(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """Worst of `noise_draws` samples within ε: a baseline, never evidence of robustness."""
    return _worst_sample(model, x, y, budget, noise, p, "uniform", 1.0)


@attack("Gaussian noise", "noise")
def gaussian_noise(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """The same with standard deviation ε / 2, clipped to ±ε (L2: scaled to ε)."""
    return _worst_sample(model, x, y, budget, noise, p, "gaussian", 0.5)


def _worst_sample(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    noise: Noise,
    p: AttackEvalParams,
    distribution: str,
    scale: float,
) -> Tensor:
    best, best_margin = x.clone(), x.new_full((len(x),), -torch.inf)
    for sample in range(p.noise_draws):
        active = (best_margin < EARLY_STOP_MARGIN).nonzero().squeeze(1)
        if not len(active):
            break
        direction = budget.norm.unit_noise(noise.of(active)(distribution, sample) * scale)
        x_adv = (x[active] + budget.eps * direction).clamp(0, 1)
        keep_worse(x_adv, margin_of(model, x_adv, y[active]), active, best, best_margin)
    return best
