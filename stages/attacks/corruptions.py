"""Common corruptions: what happens in a clinic without an attacker, each at three severities; and with one, on top of them.

No eps bounds them, so they don't count in the worst case. After Hendrycks and Dietterich (arXiv:1903.12261), chosen for
colposcopy: the lamp, the lens, the compression, and the reflections of a wet surface. PGD that starts from corrupted images
asks how robust a model is on the photographs it will see (OODRobustBench, arXiv:2310.12793). The worst of a grid of small
rotations and shifts (Engstrom et al., arXiv:1712.02779) is an attack that nobody has to compute.
"""

import io
import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from stages.attacks.perturbations import margin_loss
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import Attack, NoiseSampler
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.predictions import CLEAN
from stages.models.inference import frozen_eval_mode, predict_logits

SEVERITIES = (1, 2, 3)
ATTACKED_SEVERITY = 2  # of the corrupted images that are attacked, too
ANGLES = (-10.0, -5.0, 0.0, 5.0, 10.0)  # degrees
SHIFTS = (
    (0.0, 0.0),
    (0.04, 0.0),
    (-0.04, 0.0),
    (0.0, 0.04),
    (0.0, -0.04),
)  # right and down, fractions of the side
SPATIAL, GRID = (
    "spatial",
    "grid",
)  # in place of corruption and attack: the worst of all ANGLES and SHIFTS
Corruption = Callable[[Tensor, float, NoiseSampler], Tensor]


def blur(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Out of focus: Gaussian blur of standard deviation ``amount``, a fraction of the image's side."""
    sigma = amount * x.shape[-1]
    return (
        TF.gaussian_blur(x, [2 * int(3 * sigma) + 3] * 2, [sigma] * 2)
        if min(x.shape[-2:]) > 3 * sigma + 2
        else x
    )


def jpeg(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """JPEG compression of quality ``amount``."""
    images = []
    for pixels in x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=int(amount))
        images.append(np.array(Image.open(stream)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(x.device).float() / 255


def darkness(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Too little light: all values times ``amount``."""
    return x * amount


def contrast(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Haze: distances from the image's mean times ``amount``."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * amount


def color_cast(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """A warmer lamp: red times 1 + ``amount``, blue times 1 - ``amount``."""
    return x * torch.tensor([1 + amount, 1, 1 - amount]).to(x).view(1, 3, 1, 1)


def sensor_noise(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Gaussian noise of standard deviation ``amount``."""
    return x + amount * noise("gaussian", 0)


def glare(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Specular highlights: ``amount`` white spots, each of radius 3 % of the side."""
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


CLOSE = 0.2  # difference of two logits that bfloat16 could turn around: its error is below a tenth

# name -> function, its amount at each severity
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "blur": (blur, (0.01, 0.02, 0.03)),
    "jpeg": (jpeg, (40, 20, 8)),
    "darkness": (darkness, (0.75, 0.55, 0.35)),
    "contrast": (contrast, (0.7, 0.5, 0.3)),
    "colour_cast": (color_cast, (0.1, 0.2, 0.3)),
    "noise": (sensor_noise, (0.03, 0.06, 0.12)),
    "glare": (glare, (4, 8, 16)),
}


def corrupt(name: str, severity: int, x: Tensor, noise: NoiseSampler) -> Tensor:
    """Apply a corruption of severity 1, 2 or 3 to x (B, 3, H, W) in [0, 1]; the result is in [0, 1], too."""
    function, amounts = CORRUPTIONS[name]
    return function(x, amounts[severity - 1], noise).clamp(0, 1)


def rotate_and_shift(x: Tensor, angle: float, shift: tuple[float, float]) -> Tensor:
    """Images (B, 3, H, W) turned by ``angle`` degrees and moved by fractions of its sides; what was outside is mirrored."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    height, width = x.shape[-2:]
    # From places in the result to places in x, both in [-1, 1]; a turn in pixels, hence the ratio of the sides.
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


def _logits(target: ModelUnderAttack, x: Tensor) -> Tensor:
    """Logits (B, K) in the fast precision, and in float32 where the two largest are close: the prediction is float32's."""
    with target.fabric.autocast(), torch.no_grad(), frozen_eval_mode(target.fused_model):
        logits = target.fused_model(x).float()
    first, second = logits.topk(2).values.unbind(1)  # (B,) each
    close = first - second < CLOSE
    if close.any():
        logits[close] = predict_logits(target.model, x[close])
    return logits


def _corrupted_logits(
    target: ModelUnderAttack, positions: np.ndarray, name: str, severity: int
) -> dict[str, Tensor]:
    """Logits (M, K) of the images under one corruption."""

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        return {"logits": _logits(target, corrupt(name, severity, x, noise))}

    return target.map_batches(positions, compute)


def _attacked_logits(
    target: ModelUnderAttack, positions: np.ndarray, name: str, attack: Attack, eps: float
) -> dict[str, Tensor]:
    """Logits (M, K) of the corrupted images under attack; an image that the corruption alone changes is not attacked."""

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        x = corrupt(name, ATTACKED_SEVERITY, x, noise)
        logits = _logits(target, x)
        if len(remaining := (margin_loss(logits, y) <= 0).nonzero().squeeze(1)):

            def their_noise(distribution: str, sample: int) -> Tensor:
                return noise(distribution, sample)[remaining]

            x_adv = target.generate(
                attack, x[remaining], y[remaining], eps, their_noise, f"PGD on {name}"
            )
            attacked = predict_logits(target.model, x_adv)
            found = margin_loss(attacked, y[remaining]) > 0
            logits[remaining[found]] = attacked[found]
        return {"logits": logits}

    return target.map_batches(positions, compute)


def _spatial_logits(target: ModelUnderAttack, positions: np.ndarray) -> dict[str, Tensor]:
    """Per image the logits (M, K) of the rotation and shift of the largest margin loss."""

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        worst = _logits(target, x)
        for angle, shift in itertools.product(ANGLES, SHIFTS):
            if angle or any(shift):
                logits = _logits(target, rotate_and_shift(x, angle, shift))
                worse = margin_loss(logits, y) > margin_loss(worst, y)
                worst = torch.where(worse[:, None], logits, worst)
        return {"logits": worst}

    return target.map_batches(positions, compute)


def evaluate_corruptions(
    target: ModelUnderAttack, dataset: ImageDataset, attack: Attack, eps: float, cache: StepCache
) -> pd.DataFrame:
    """corruptions.csv: all images corrupted, corrupted and attacked within eps, rotated and shifted."""
    positions = np.arange(len(target.split))
    images = dataset.manifest.iloc[target.split.rows][["path", "label"]].reset_index(drop=True)
    cases = {
        (name, severity, CLEAN): partial(_corrupted_logits, target, positions, name, severity)
        for name, severity in itertools.product(CORRUPTIONS, SEVERITIES)
    }
    for name in CORRUPTIONS:
        cases[name, ATTACKED_SEVERITY, "pgd"] = partial(
            _attacked_logits, target, positions, name, attack, eps
        )
    cases[SPATIAL, 1, GRID] = partial(_spatial_logits, target, positions)
    tables = []
    for (name, severity, attacked), compute in cases.items():
        logits = cache.get_or_compute(f"{name} {severity} {attacked}", compute)["logits"]
        probability = logits.softmax(1).numpy()  # (M, K)
        tables.append(
            images.assign(
                corruption=name,
                severity=severity,
                attack=attacked,
                prediction=np.array(dataset.classes)[probability.argmax(1)],
                confidence=probability.max(1).astype(float),
            )
        )
    return pd.concat(tables, ignore_index=True)
