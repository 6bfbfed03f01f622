"""The ensemble of attacks that has the last word on every image, and what is reported of it.

``lean``: APGD on several losses (apgd.py), then Square on some of the images that are left. ``full``: the attacks of AutoAttack
with the library's settings (autoattack.py), Square on all that is left. Either way Square comes last and uses no gradient: what
it still finds, a masked gradient hid.
"""

from functools import partial
from importlib.metadata import version

from stages.attacks import autoattack
from stages.attacks.apgd import apgd_ensemble
from stages.attacks.suite import Attack
from stages.core.params import AttackEvalParams
from stages.core.predictions import LEAN_ENSEMBLE, Ensemble

SQUARE = "square"
SQUARE_IMAGES = 64  # lean: at most so many


def ensemble_name(p: AttackEvalParams, classes: int) -> str:
    """``apgd``, or ``aa-k3`` for AutoAttack's attacks on three classes."""
    return LEAN_ENSEMBLE if p.ensemble == "lean" else autoattack.ensemble_name(classes)


def ensemble_attacks(
    p: AttackEvalParams, classes: int, *, norm: str, seed: int
) -> dict[str, Attack]:
    """The attacks by name, in the order of running; each is run on what none before it found."""
    if p.ensemble == "full":
        return autoattack.ensemble_attacks(
            classes, steps=p.aa_steps, queries=p.aa_queries, norm=norm, seed=seed
        )
    return {
        LEAN_ENSEMBLE: partial(apgd_ensemble, steps=p.aa_steps, targets=p.targets, norm=norm),
        SQUARE: autoattack.square_attack(queries=p.aa_queries, norm=norm, seed=seed),
    }


def ensemble_config(
    p: AttackEvalParams,
    classes: int,
    *,
    images: int,
    square_images: int,
    square_remaining: int,
    seed: int,
) -> Ensemble:
    """What the ensemble consists of for a model of so many classes."""
    target_classes = (
        min(p.targets, classes - 1) if p.ensemble == "lean" else autoattack.target_classes(classes)
    )
    return {
        "name": ensemble_name(p, classes),
        "attacks": list(ensemble_attacks(p, classes, norm="linf", seed=seed)),
        "iterations": p.aa_steps,
        "queries": p.aa_queries,
        "target_classes": target_classes,
        "images": images,
        "square_images": square_images,
        "square_remaining": square_remaining,
        "seed": seed,
        "library": f"pyautoattack {version('pyautoattack')}",
    }
