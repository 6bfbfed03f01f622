"""Common corruptions: what happens in a clinic without an attacker, each at three severities.

And with one, on top of them. No ε bounds corruptions, so they don't count in the worst case. After
Hendrycks and Dietterich (arXiv:1903.12261), chosen for colposcopy: the lamp, the lens, the
compression, and the reflections of a wet surface. PGD that starts from corrupted images asks how
robust a model is on the photographs it will see (OODRobustBench, arXiv:2310.12793). The worst of a
grid of small rotations and shifts (Engstrom et al., arXiv:1712.02779) is an attack without
gradients.
"""

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from stages.attacks.attack import Noise
from stages.attacks.gradient import margin_loss
from stages.attacks.verifier import check_within_budget
from stages.attacks.white_box import pgd
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.core.predictions import CLEAN
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.target import Batch, TargetModel
from stages.measurements.threads import BatchFunction
from stages.models.inference import frozen_eval_mode, predict_logits

TABLE = Table(
    "corruptions",
    {
        "path": (str, "image"),
        "label": (str, "class"),
        "corruption": (str, "name, or spatial: worst rotation and shift"),
        "severity": (int, "1 to 3"),
        "attack": (str, "none; pgd, on the corrupted image; grid, of rotations and shifts"),
        "prediction": (str, "predicted class"),
        "confidence": (float, "probability of the predicted class"),
    },
)
SEVERITIES = (1, 2, 3)
ATTACKED_SEVERITY = 2  # of the corrupted images that are attacked, too
ANGLES = (-10.0, -5.0, 0.0, 5.0, 10.0)  # degrees
# Right and down, fractions of the side.
SHIFTS = ((0.0, 0.0), (0.04, 0.0), (-0.04, 0.0), (0.0, 0.04), (0.0, -0.04))
SPATIAL, GRID = "spatial", "grid"  # in place of corruption and attack: the worst of all of them
# Times the largest error of the fast precision on clean images: nearer logits are float32's.
SAFETY = 4.0
Corruption = Callable[[Tensor, float, Noise], Tensor]


def blur(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """Out of focus: Gaussian blur, its standard deviation a fraction of the image's side."""
    sigma = amount * x.shape[-1]
    if min(x.shape[-2:]) <= 3 * sigma + 2:  # the kernel would be larger than the mirrored image
        return x
    return TF.gaussian_blur(x, [2 * int(3 * sigma) + 3] * 2, [sigma] * 2)


def jpeg(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """JPEG compression of quality ``amount``."""
    images = []
    for pixels in x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=int(amount))
        images.append(np.array(Image.open(stream)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(x.device).float() / 255


def darkness(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """Too little light: all values times ``amount``."""
    return x * amount


def contrast(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """Haze: distances from the image's mean times ``amount``."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * amount


def color_cast(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """A warmer lamp: red times 1 + ``amount``, blue times 1 - ``amount``."""
    return x * torch.tensor([1 + amount, 1, 1 - amount]).to(x).view(1, 3, 1, 1)


def sensor_noise(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """Gaussian noise of standard deviation ``amount``."""
    return x + amount * noise("gaussian", 0)


def glare(x: Tensor, amount: float, noise: Noise) -> Tensor:
    """Specular highlights: ``amount`` white spots, each of radius 3% of the side."""
    height, width = x.shape[-2:]
    centers = (
        noise("uniform", 1).flatten(1)[:, : 2 * int(amount)] + 1
    ) / 2  # (B, 2 * spots) in [0, 1]
    rows, columns = torch.arange(height).to(x) / height, torch.arange(width).to(x) / width
    for center in centers.view(len(x), -1, 2).unbind(1):
        down, right = center.unbind(1)  # (B,) each
        square = (rows[None, :, None] - down[:, None, None]) ** 2 + (
            columns[None, None, :] - right[:, None, None]
        ) ** 2
        spot = torch.exp(-square / (2 * 0.03**2))[:, None]  # (B, 1, H, W)
        x = x + (1 - x) * spot
    return x


# name -> function, its amount at each severity
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "blur": (blur, (0.01, 0.02, 0.03)),
    "jpeg": (jpeg, (40, 20, 8)),
    "darkness": (darkness, (0.75, 0.55, 0.35)),
    "contrast": (contrast, (0.7, 0.5, 0.3)),
    "color_cast": (color_cast, (0.1, 0.2, 0.3)),
    "noise": (sensor_noise, (0.03, 0.06, 0.12)),
    "glare": (glare, (4, 8, 16)),
}


def corrupt(name: str, severity: int, x: Tensor, noise: Noise) -> Tensor:
    """Apply a corruption of severity 1, 2 or 3 to x (B, 3, H, W) in [0, 1]; so is the result."""
    function, amounts = CORRUPTIONS[name]
    return function(x, amounts[severity - 1], noise).clamp(0, 1)


def rotate_and_shift(x: Tensor, angle: float, shift: tuple[float, float]) -> Tensor:
    """Turn images (B, 3, H, W) by ``angle`` degrees and move them by fractions of their sides.

    What was outside is mirrored.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    height, width = x.shape[-2:]
    # From places in the result to places in x, both in [-1, 1]; a turn in pixels, hence the ratio
    # of the sides.
    right, down = -2 * shift[0], -2 * shift[1]
    matrix = torch.tensor(
        [[cos, sin * height / width, right], [-sin * width / height, cos, down]]
    ).to(x)
    grid = F.affine_grid(
        matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False
    )  # (B, H, W, 2)
    return F.grid_sample(
        x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    ).clamp(0, 1)


def _fast_logits(target: TargetModel, x: Tensor) -> Tensor:
    with target.fabric.autocast(), torch.no_grad(), frozen_eval_mode(target.fused_model):
        return target.fused_model(x).float()


def precision_error(target: TargetModel, batch: Batch) -> dict[str, Tensor]:
    """(B,) how much the fast precision changes the difference of two logits, at most."""
    change = _fast_logits(target, batch.x) - predict_logits(target.model, batch.x)  # (B, K)
    return {"error": change.amax(1) - change.amin(1)}


def decided_logits(target: TargetModel, x: Tensor, close: float) -> Tensor:
    """Logits (B, K) in the fast precision, in float32 where that decides the prediction.

    That is where the two largest are nearer to each other than ``close``.
    """
    logits = _fast_logits(target, x)
    first, second = logits.topk(2).values.unbind(1)  # (B,) each
    undecided = first - second < close
    if undecided.any():
        logits[undecided] = predict_logits(target.model, x[undecided])
    return logits


def corrupted_batch(
    target: TargetModel, batch: Batch, close: float, name: str, severity: int
) -> dict[str, Tensor]:
    """Logits (B, K) under one corruption."""
    x = corrupt(name, severity, batch.x, batch.noise)
    return {"logits": decided_logits(target, x, close)}


def attacked_batch(
    target: TargetModel,
    batch: Batch,
    unattacked: Tensor,
    name: str,
    budget: Budget,
    p: AttackEvalParams,
) -> dict[str, Tensor]:
    """Logits (B, K) under PGD that starts from the corrupted images.

    An image that the corruption alone changes is not attacked. unattacked: (N, K) logits of all
    corrupted images.
    """
    x = corrupt(name, ATTACKED_SEVERITY, batch.x, batch.noise)
    corrupted = Batch(batch.positions, x, batch.y, batch.noise)
    logits = unattacked[batch.positions].to(x.device)
    remaining = margin_loss(logits, batch.y) <= 0
    if remaining.any():
        attacked = corrupted.where(remaining)
        with target.fabric.autocast():
            x_adv = pgd.run(target.fused_model, attacked.x, attacked.y, budget, attacked.noise, p)
        check_within_budget(attacked.x, x_adv, budget, pgd.name)
        found = predict_logits(target.model, x_adv)
        worse = margin_loss(found, attacked.y) > 0
        logits[remaining.nonzero().squeeze(1)[worse]] = found[worse]
    return {"logits": logits}


def spatial_batch(target: TargetModel, batch: Batch, close: float) -> dict[str, Tensor]:
    """Per image the logits (B, K) of the rotation and shift of the largest margin loss."""
    worst = decided_logits(target, batch.x, close)
    for angle, shift in itertools.product(ANGLES, SHIFTS):
        if angle or any(shift):
            logits = decided_logits(target, rotate_and_shift(batch.x, angle, shift), close)
            worse = margin_loss(logits, batch.y) > margin_loss(worst, batch.y)
            worst = torch.where(worse[:, None], logits, worst)
    return {"logits": worst}


def _logits(context: Context, step: str, function: BatchFunction, *arguments: Any) -> Tensor:
    """(N, K) of all images."""
    target = context.target
    return context.steps.run(step, target, target.everything, function, *arguments)["logits"]


def run(context: Context) -> dict[str, Any]:
    """corruptions.csv: all images corrupted; corrupted and attacked; rotated and shifted."""
    target, budget, p = context.target, context.attack.budget, context.p.for_curve()

    error = context.steps.run("precision", target, context.subset, precision_error)["error"]
    close = SAFETY * error.max().item()
    found: dict[tuple[str, int, str], Tensor] = {}  # logits (N, K)
    for name, severity in itertools.product(CORRUPTIONS, SEVERITIES):
        step = f"{name} {severity}"
        found[name, severity, CLEAN] = _logits(
            context, step, corrupted_batch, close, name, severity
        )
    for name in CORRUPTIONS:
        step, unattacked = f"{name} {ATTACKED_SEVERITY} pgd", found[name, ATTACKED_SEVERITY, CLEAN]
        found[name, ATTACKED_SEVERITY, pgd.name] = _logits(
            context, step, attacked_batch, unattacked, name, budget, p
        )
    found[SPATIAL, 1, GRID] = _logits(context, f"{SPATIAL} 1 {GRID}", spatial_batch, close)

    images = context.images(target.everything, "path", "label")
    tables = []
    for (name, severity, attack), logits in found.items():
        probability = logits.softmax(1).numpy()  # (N, K)
        tables.append(
            images.assign(
                corruption=name,
                severity=severity,
                attack=attack,
                prediction=np.array(context.dataset.classes)[probability.argmax(1)],
                confidence=probability.max(1).astype(float),
            )
        )
    return {TABLE.name: pd.concat(tables, ignore_index=True)}


MEASUREMENT = Measurement(
    run, (TABLE,), lambda context: len(CORRUPTIONS) * (len(SEVERITIES) + 1) + 2
)
