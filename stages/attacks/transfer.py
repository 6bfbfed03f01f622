"""PGD on another model than the one that is attacked."""

from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.attack import Attack, Noise
from stages.attacks.gradient import pgd_step_size
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams


def pgd_on(source: nn.Module, *, surrogate: bool = False) -> Attack:
    """The attack on ``source``; ``surrogate``: it was trained for nothing else."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
    ) -> Tensor:
        """PGD on another model, all `curve_steps` steps from a random start."""
        start, alpha = noise("uniform", 0), pgd_step_size(budget.eps, p.curve_steps)
        return gradient.pgd(source, x, y, budget, start, alpha=alpha, steps=p.curve_steps)

    if surrogate:
        return Attack("surrogate", "Surrogate (PGD)", "transfer", run, "curve_steps")
    return Attack("transfer", "Transfer (PGD)", "transfer", run, "curve_steps")
