"""Which attacks are run, from cheap to expensive. A new one costs its file and a line here."""

from dataclasses import replace

from stages.attacks.apgd import apgd
from stages.attacks.attack import Attack
from stages.attacks.autoattack import full_ensemble, square
from stages.attacks.random_noise import gaussian_noise, uniform_noise
from stages.attacks.white_box import bim, fgsm, pgd
from stages.core.params import AttackEvalParams

# On every image that is classified correctly without attack, at `attack.eps`.
SUITE = (uniform_noise, gaussian_noise, fgsm, bim, pgd)
LEAN_ENSEMBLE = (apgd, replace(square, on_subset=True))  # Square as a check for masked gradients


def ensemble(p: AttackEvalParams, classes: int) -> tuple[Attack, ...]:
    """The attacks that come last, each on what none before it found.

    Square is the last one and uses no gradient: what it still finds, a masked gradient hid.
    """
    return LEAN_ENSEMBLE if p.ensemble == "lean" else full_ensemble(classes)


def ensemble_name(p: AttackEvalParams, classes: int) -> str:
    """``apgd``, or ``aa-k3`` for AutoAttack's attacks on three classes."""
    return apgd.name if p.ensemble == "lean" else f"aa-k{classes}"
