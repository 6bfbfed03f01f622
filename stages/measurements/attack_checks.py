"""Was the attack strong enough? Values for the diagnostics, measured on a part of the test images.

After Carlini et al. (arXiv:1902.06705), AutoAttack's checks (2003.01690) and Pintor et al.
(2106.09947). Attacks start from images that are classified correctly; stronger variants are tried
where every attack so far failed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.attack import EARLY_STOP_MARGIN
from stages.attacks.autoattack import square
from stages.attacks.gradient import is_adversarial, margin_loss, pgd_step_size
from stages.attacks.verifier import quantize_8bit
from stages.attacks.white_box import pgd
from stages.core.predictions import CLEAN, is_correct, within, worst_case
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.model_checks import CHECKS, Value, to_table
from stages.measurements.suite import attack_batch
from stages.measurements.target import Batch, TargetModel

UNBOUNDED_IMAGES, UNBOUNDED_STEPS = 64, 20
POWER_IMAGES = 32
RESTARTS = 3  # the first one included
STEPS = 3  # that the progress bar counts
TABLE = Table("attack_checks", CHECKS.columns)


class MarginRecorder(nn.Module):
    """A model that records the margin loss at every call."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y
        self.margins: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits = self.model(x)
        self.margins.append(margin_loss(logits.detach(), self.y))
        return logits


class LossVariant(nn.Module):
    """A model whose outputs make cross-entropy another loss, image by image.

    Where ``use_margin`` (B,) is false, the logits times ``scale`` (B,): cross-entropy saturates
    elsewhere. Where it is true, 0 for class y and the sign of the margin for the others, of which
    cross-entropy has the margin's gradient at any scale.
    """

    def __init__(self, model: nn.Module, y: Tensor, scale: Tensor, use_margin: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y
        self.scale, self.use_margin = scale[:, None], use_margin[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K)."""
        logits = self.model(x)
        margin = margin_loss(logits, self.y)
        sign = margin / (margin.detach().abs() + 1e-12)  # (B,) +1 or -1, with the margin's gradient
        outputs = sign[:, None].expand_as(logits).scatter(1, self.y[:, None], 0.0)
        return torch.where(self.use_margin, outputs, self.scale * logits)


def trace_batch(
    target: TargetModel, batch: Batch, context: Context, robust: Tensor
) -> dict[str, Tensor]:
    """PGD with all its steps, its iterates, and on the robust images stronger variants of it.

    Args:
        target: the model.
        batch: correctly classified images.
        context: budget and steps.
        robust: (N,) bool, of all images: no attack so far succeeded.
    """
    budget, steps = context.attack.budget, context.p.pgd_steps
    alpha, start = pgd_step_size(budget.eps, steps), batch.noise("uniform", 0)
    recorder = MarginRecorder(target.fused_model, batch.y)
    with target.fabric.autocast():
        reduced_precision = torch.is_autocast_enabled(batch.x.device.type)
        x_adv = gradient.pgd(recorder, batch.x, batch.y, budget, start, alpha=alpha, steps=steps)
    success = is_adversarial(target.model, x_adv, batch.y)
    quantized = quantize_8bit(batch.x, x_adv)
    sizes = [budget.norm.size(image - batch.x) for image in (x_adv, quantized)]
    result = {
        "size": torch.maximum(*sizes),
        "quantized": is_adversarial(target.model, quantized, batch.y) != success,
        "margins": torch.stack(recorder.margins, 1).float(),  # (B, steps + 1)
        "success": success,
    }
    stronger = dict.fromkeys(("more_steps", "restarts", "losses"), torch.zeros_like(success))
    failed = ~success & robust[batch.positions].to(success.device)
    if failed.any():
        found = extra_successes(target, batch.where(failed), x_adv[failed], context)
        for name, succeeded in found.items():
            stronger[name] = torch.zeros_like(success)
            stronger[name][failed] = succeeded
    if reduced_precision:
        stronger["float32"] = torch.zeros_like(success)
        if failed.any():
            x, y = batch.x[failed], batch.y[failed]
            with torch.autocast(x.device.type, enabled=False):
                precise = gradient.pgd(
                    target.fused_model, x, y, budget, start[failed], alpha=alpha, steps=steps
                )
            stronger["float32"][failed] = is_adversarial(target.model, precise, y)
    return result | stronger


@dataclass(frozen=True)
class Variant:
    """A stronger variant of PGD: what it is evidence of, and how it differs.

    Attributes:
        name: of the value.
        start: (B, 3, H, W) noise.
        relative_step_size: to that of PGD.
        logit_scale: factor of the logits in the cross-entropy.
        use_margin: the margin in place of the cross-entropy.
    """

    name: str
    start: Tensor
    relative_step_size: float = 1.0
    logit_scale: float = 1.0
    use_margin: bool = False


def extra_successes(
    target: TargetModel, batch: Batch, x_adv: Tensor, context: Context
) -> dict[str, Tensor]:
    """On which of these images, where every attack failed, stronger variants succeed: (B,) bool.

    As many steps again of half the size, other starts, another loss or scale of the logits. All
    variants run as one batch: a few images at a time would take twice as long.
    """
    budget, steps = context.attack.budget, context.p.pgd_steps
    starts = [batch.noise("uniform", sample) for sample in range(RESTARTS)]
    variants = [
        Variant("more_steps", (x_adv - batch.x) / budget.eps, relative_step_size=0.5),
        *(Variant("restarts", start) for start in starts[1:]),
        *(Variant("losses", starts[0], logit_scale=scale) for scale in (0.1, 10.0)),
        Variant("losses", starts[0], use_margin=True),
    ]
    count = len(batch.x)

    def per_image(values: list[float]) -> Tensor:
        return torch.tensor(values, device=x_adv.device).repeat_interleave(count)

    scale = per_image([variant.logit_scale for variant in variants])  # (variants * images,)
    use_margin = per_image([variant.use_margin for variant in variants])
    step_size = per_image([variant.relative_step_size for variant in variants])
    alpha = pgd_step_size(budget.eps, steps) * step_size[:, None, None, None]
    start = torch.cat([variant.start for variant in variants])
    x, y = batch.x.repeat(len(variants), 1, 1, 1), batch.y.repeat(len(variants))
    success = []
    for i in torch.arange(len(x), device=x.device).split(target.batch_size):
        model = LossVariant(target.fused_model, y[i], scale[i], use_margin[i])
        with target.fabric.autocast():
            candidate = gradient.pgd(
                model, x[i], y[i], budget, start[i], alpha=alpha[i], steps=steps
            )
        success.append(is_adversarial(target.model, candidate, y[i]))
    by_variant = torch.cat(success).view(len(variants), -1)  # (variants, images)
    result: dict[str, Tensor] = {}
    for variant, succeeded in zip(variants, by_variant, strict=True):
        result[variant.name] = result.get(variant.name, torch.zeros_like(succeeded)) | succeeded
    return result


def unbounded_batch(target: TargetModel, batch: Batch, context: Context) -> dict[str, Tensor]:
    """Which images PGD misses within a ball so large that no image is left to recognize."""
    far = context.attack.budget.with_eps(unbounded_eps(context))
    steps = max(context.p.pgd_steps, UNBOUNDED_STEPS)
    p = context.p.model_copy(update={"pgd_steps": steps, "pgd_restarts": 1})
    with target.fabric.autocast():
        x_adv = pgd.run(target.fused_model, batch.x, batch.y, far, batch.noise, p)
    return {"missed": ~is_adversarial(target.model, x_adv, batch.y)}


def unbounded_eps(context: Context) -> float:
    """The ε at which no image is left to recognize."""
    return context.attack.budget.norm.limit(3 * context.dataset.image_size**2)


def square_power(context: Context, worst: pd.DataFrame, correct: np.ndarray) -> Value:
    """The share of images known to fall that Square finds with its `aa_queries` queries.

    Args:
        context: model, budget and queries.
        worst: the worst case of each image, in the order of the split.
        correct: (N,) bool, classified correctly without attack.
    """
    target, steps = context.target, context.steps
    known = correct & ~is_correct(worst) & (worst["found_by"] != square.name).to_numpy()
    positions = target.stratified(np.flatnonzero(known), POWER_IMAGES)
    if not len(positions):
        steps.skip()
        return math.nan, 0
    budget, p = context.attack.budget, context.p
    found = steps.run("checks: Square", target, positions, attack_batch, square, budget, p)
    missed = found["logits"].argmax(1) == target.labels[positions]
    return 1 - float(missed.float().mean()), len(positions)


def unconverged(margins: Tensor, success: Tensor) -> Tensor:
    """(n,) images without success whose best margin loss grew by over 5 % of its range at the end.

    In the last 10 steps, or the last quarter of fewer than 40. margins: (n, steps + 1).
    """
    best = margins.cummax(1).values
    last = min(10, max(1, margins.shape[1] // 4))
    growth = (best[:, -1] - best[:, -1 - last]) / (best[:, -1] - best[:, 0]).clamp_min(1e-12)
    return (growth > 0.05) & ~success


def check_attacks(context: Context) -> dict[str, Value]:
    """Check -> (value, n); empty where no image is classified correctly."""
    target, budget, steps = context.target, context.attack.budget, context.steps
    rows = context.predictions
    paths = context.images(target.everything, "path")["path"]
    worst = worst_case(within(rows, budget.eps)).set_index("path").loc[paths]
    correct = is_correct(rows[rows["attack"] == CLEAN])
    positions = context.subset[correct[context.subset]]
    if not len(positions):
        for _ in range(STEPS):
            steps.skip()
        return {}
    robust = torch.tensor(is_correct(worst))
    found = steps.run("checks: PGD", target, positions, trace_batch, context, robust)
    some = target.stratified(positions, UNBOUNDED_IMAGES)
    missed = steps.run("checks: unbounded", target, some, unbounded_batch, context)["missed"]
    n, size = len(positions), float(found["size"].max())
    iterates = found["margins"].amax(1) > EARLY_STOP_MARGIN
    values = {
        "norm_excess": max(size - budget.eps - budget.norm.tolerance(budget.eps), 0.0),
        "quantization": float(found["quantized"].float().mean()),
        "lost_iterates": float((iterates & ~found["success"]).float().mean()),
        "unconverged": float(unconverged(found["margins"], found["success"]).float().mean()),
    }
    for name in ("more_steps", "restarts", "losses", "float32"):
        if name in found:
            values[name] = int(found[name].sum()) / n
    result = {name: (value, n) for name, value in values.items()}
    result["unbounded"] = float(missed.float().mean()), len(missed)
    return result | {"square_power": square_power(context, worst, correct)}


def run(context: Context) -> dict[str, Any]:
    """attack_checks.csv."""
    return {TABLE.name: to_table(check_attacks(context))}


MEASUREMENT = Measurement(run, (TABLE,), steps=lambda context: STEPS)
