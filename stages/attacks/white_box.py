"""The gradient attacks that models are evaluated under: FGSM, BIM, PGD."""

import torch
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.attack import EARLY_STOP_MARGIN, Noise, attack
from stages.attacks.gradient import keep_worse, margin_loss, pgd_step_size
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.models.inference import frozen_eval_mode


def margin_of(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    """Margin loss (B,) at x_adv (B, 3, H, W), in the precision of the attack."""
    with frozen_eval_mode(model), torch.no_grad():
        return margin_loss(model(x_adv), y)


@attack("FGSM", "single-step", steps=1)
def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """One gradient step of size ε (arXiv:1412.6572)."""
    return gradient.fgsm(model, x, y, budget)


@attack("BIM-{steps}", "iterative", steps="bim_steps")
def bim(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """PGD from the image itself, `bim_steps` steps (arXiv:1607.02533)."""
    alpha = pgd_step_size(budget.eps, p.bim_steps)
    return gradient.pgd(
        model, x, y, budget, alpha=alpha, steps=p.bim_steps, early_stop_margin=EARLY_STOP_MARGIN
    )


@attack("PGD-{steps}", "iterative", steps="pgd_steps", starts_from="smaller eps")
def pgd(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """Projected gradient descent from random starts, best iterate (arXiv:1706.06083).

    `pgd_steps` steps of 2.5 ε / steps, `pgd_restarts` restarts; at the other ε of the grid
    `curve_steps` steps from one start.
    """
    alpha, steps = pgd_step_size(budget.eps, p.pgd_steps), p.pgd_steps
    stop = EARLY_STOP_MARGIN
    if p.pgd_restarts == 1:  # the best of one needs no comparison, which costs a forward pass
        start = noise("uniform", 0)
        return gradient.pgd(
            model, x, y, budget, start, alpha=alpha, steps=steps, early_stop_margin=stop
        )
    best, best_margin = x.clone(), x.new_full((len(x),), -torch.inf)
    for restart in range(p.pgd_restarts):
        active = (best_margin < stop).nonzero().squeeze(1)
        if not len(active):
            break
        start = noise.of(active)("uniform", restart)
        x_adv = gradient.pgd(
            model,
            x[active],
            y[active],
            budget,
            start,
            alpha=alpha,
            steps=steps,
            early_stop_margin=stop,
        )
        keep_worse(x_adv, margin_of(model, x_adv, y[active]), active, best, best_margin)
    return best
