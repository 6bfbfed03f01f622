"""Is the model what attacks assume? Values for the diagnostics, measured on a few test images.

After Carlini et al. (arXiv:1902.06705), AutoAttack's checks (2003.01690) and Pintor et al.
(2106.09947). Which value is too large is for the report to say (`stages.report.checks`).
"""

import copy
import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.gradient import loss_and_gradient, margin_gradient, margin_loss
from stages.core.norms import Budget
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.target import Batch
from stages.models.inference import frozen_eval_mode, predict_logits

IMAGES = 32
REPEATS, ALONE = 5, 4  # forward passes of a batch, and images that are also evaluated alone
FINITE_DIFFERENCES = 8  # images
NOISE_SAMPLES = 10  # random points in the ball
CHECKS = Table(
    "model_checks",
    {
        "check": (str, "name of the quantity"),
        "value": (float, "its value"),
        "n": (int, "images that it was computed on"),
    },
)
Value = tuple[float, int]  # and the number of images; 0 images: nothing can be said


def looks_like_softmax(model: nn.Module, x: Tensor) -> Value:
    """1 if outputs lie in [0, 1] and add up to one: the gradients of a softmax vanish."""
    out = predict_logits(model, x)
    in_range = (out >= -1e-5).all() and (out <= 1 + 1e-5).all()
    return float(in_range and ((out.sum(1) - 1).abs() < 1e-5).all()), len(x)


def batch_dependence(model: nn.Module, x: Tensor) -> Value:
    """Largest distance between normalized logits of the same images, five times and alone.

    In the mode that the model is in: BatchNorm in train mode must show here.
    """
    model, x = copy.deepcopy(model), x[:16]  # a model in train mode would be changed
    with torch.no_grad():
        outputs = [model(x) for _ in range(REPEATS)]
        single = [model(x[i : i + 1]) for i in range(min(ALONE, len(x)))]
        outputs.append(torch.cat([*single, outputs[0][ALONE:]]))
    unit = [out / (out.norm(dim=1, keepdim=True) + 1e-10) for out in outputs]
    return max(float((out - unit[0]).norm(dim=1).max()) for out in unit[1:]), len(x)


def _state(model: nn.Module) -> list[Any]:
    """All that an attack could change in a model."""
    gradients = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [
        *(value.clone() for value in model.state_dict().values()),
        *gradients,
        *(p.requires_grad for p in model.parameters()),
        *(module.training for module in model.modules()),
    ]


def changed_state(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Value:
    """Tensors, modes and gradients that an attack changed; modules in train mode count, too."""
    before = _state(model)
    gradient.pgd(model, x[:4], y[:4], budget, alpha=budget.eps, steps=2)
    changed = 0
    for old, new in zip(before, _state(model), strict=True):
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            changed += not torch.equal(old, new)
        else:
            changed += old is not new
    return float(changed + sum(module.training for module in model.modules())), min(4, len(x))


def zero_gradients(model: nn.Module, batch: Batch, budget: Budget) -> Value:
    """The largest fraction of images with no gradient, of cross-entropy or margin.

    At the image, or at a random start.
    """
    x, y, fractions = batch.x, batch.y, []
    with frozen_eval_mode(model), torch.autocast(x.device.type, enabled=False):
        for point in (x, budget.random_start(x, batch.noise("uniform", 0))):
            for found in (loss_and_gradient(model, point, y)[2], margin_gradient(model, point, y)):
                zero = found.flatten(1).abs().sum(1) == 0
                fractions.append(float(zero.float().mean()))
    return max(fractions), len(x)


def gradient_error(model: nn.Module, x: Tensor, y: Tensor) -> Value:
    """Relative error of the margin's derivative along the sign of its gradient, the largest one.

    Autograd against a central difference, in double precision. NaN, and no images, where there is
    no gradient at all: such a model needn't be one that double precision can be put through.
    """
    x, y = x[:FINITE_DIFFERENCES], y[:FINITE_DIFFERENCES]
    with frozen_eval_mode(model):
        if not margin_gradient(model, x, y).any():
            return math.nan, 0
    model, h = copy.deepcopy(model).cpu().double(), 1e-6
    x, y = x.cpu().double(), y.cpu()
    with frozen_eval_mode(model):
        at_x = margin_gradient(model, x, y)
        with torch.no_grad():
            ahead, behind = (margin_loss(model(x + s * h * at_x.sign()), y) for s in (1, -1))
    expected, measured = at_x.abs().flatten(1).sum(1), (ahead - behind) / (2 * h)
    defined = expected > 0  # without a gradient there is no direction
    error = ((measured - expected).abs() / expected)[defined]
    return float(error.max()) if defined.any() else math.nan, int(defined.sum())


def loss_roughness(model: nn.Module, batch: Batch, budget: Budget) -> Value:
    """Mean change of the cross-entropy over random points in the ball, relative to its mean."""
    losses = []
    for point in (batch.x, *_random_points(batch, budget)):
        logits = predict_logits(model, point)
        losses.append(nn.functional.cross_entropy(logits, batch.y, reduction="none"))
    first, *others = losses
    change = torch.stack([(other - first).abs() for other in others]).mean()
    return float(change / first.mean().clamp_min(1e-12)), len(batch.x)


def _random_points(batch: Batch, budget: Budget) -> list[Tensor]:
    noise = (batch.noise("uniform", sample) for sample in range(NOISE_SAMPLES))
    return [(batch.x + budget.eps * budget.norm.unit_noise(n)).clamp(0, 1) for n in noise]


def check_model(context: Context) -> dict[str, Any]:
    """Check -> (value, n)."""
    target, budget = context.target, context.attack.budget
    batch = target.load(target.stratified(context.subset, IMAGES))
    model, x, y = target.model, batch.x, batch.y
    return {
        "looks_like_softmax": looks_like_softmax(model, x),
        "batch_dependence": batch_dependence(model, x),
        "changed_state": changed_state(model, x, y, budget),
        "zero_gradients": zero_gradients(model, batch, budget),
        "gradient_error": gradient_error(model, x, y),
        "loss_roughness": loss_roughness(model, batch, budget),
    }


def to_table(values: dict[str, Value]) -> pd.DataFrame:
    """Rows of CHECKS; a value that could not be computed is left out."""
    rows = [(name, value, n) for name, (value, n) in values.items() if math.isfinite(value)]
    return pd.DataFrame(rows, columns=list(CHECKS.columns))


def run(context: Context) -> dict[str, Any]:
    """model_checks.csv."""
    values = context.steps.once("checks of the model", check_model, context)
    return {CHECKS.name: to_table(values)}


MEASUREMENT = Measurement(run, (CHECKS,))
