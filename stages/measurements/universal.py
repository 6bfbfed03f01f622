"""The universal perturbation of each model: computed on validation images, never on test images."""

from typing import Any

import numpy as np
from torch import Tensor

from stages.attacks.universal import universal_perturbation
from stages.core.norms import Budget
from stages.measurements.context import Context, Measurement
from stages.measurements.pictures import perturbation_picture, png_bytes
from stages.measurements.target import TargetModel


def perturbation_of(target: TargetModel, budget: Budget) -> dict[str, Tensor]:
    """The perturbation (3, H, W) made on the images of ``target``."""

    def load(positions: np.ndarray) -> tuple[Tensor, Tensor]:
        return target.split.load(positions, target.fabric.device)

    with target.fabric.autocast():
        images, seed = len(target.split), target.seed
        delta = universal_perturbation(target.fused_model, load, images, budget, seed)
    return {"delta": delta.cpu()}


def run(context: Context) -> dict[str, Any]:
    """universal.png, of the evaluated model."""
    for name in context.models:
        step, target = f"universal perturbation of {name}", context.validation(name)
        result = context.steps.once(step, perturbation_of, target, context.attack.budget)
        context.perturbations[name] = result["delta"]
    own = context.perturbations[context.name]
    return {"universal.png": png_bytes(perturbation_picture(own))}


MEASUREMENT = Measurement(run, steps=lambda context: len(context.models))
