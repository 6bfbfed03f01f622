"""What happens in a clinic without an attacker: common defects of a photograph, each at three severities.

No budget bounds them, so they don't count in the worst case. After Hendrycks and Dietterich (arXiv:1903.12261), for colposcopy:
the lamp, the lens, the compression, and the reflections of a wet surface.
"""

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import NoiseSampler
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.models.inference import predict_logits

SEVERITIES = (1, 2, 3)
Corruption = Callable[[Tensor, float, NoiseSampler], Tensor]


def blur(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Out of focus: a Gaussian of standard deviation amount, a share of the picture's side."""
    sigma = amount * x.shape[-1]
    return TF.gaussian_blur(x, [2 * int(3 * sigma) + 3] * 2, [sigma] * 2) if min(x.shape[-2:]) > 3 * sigma + 2 else x


def jpeg(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Compressed at this JPEG quality."""
    pictures = []
    for image in x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=int(amount))
        pictures.append(np.array(Image.open(stream)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(x.device).float() / 255


def darkness(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Too little light: all values times amount."""
    return x * amount


def contrast(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Haze: distances from the picture's mean times amount."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * amount


def colour_cast(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """A warmer lamp: red times 1 + amount, blue times 1 - amount."""
    return x * torch.tensor([1 + amount, 1, 1 - amount]).to(x).view(1, 3, 1, 1)


def sensor_noise(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Gaussian noise of this standard deviation."""
    return x + amount * noise("gaussian", 0)


def glare(x: Tensor, amount: float, noise: NoiseSampler) -> Tensor:
    """Reflections of the lamp: this many white spots, each 3 % of the side in radius."""
    height, width = x.shape[-2:]
    centres = (noise("uniform", 1).flatten(1)[:, : 2 * int(amount)] + 1) / 2  # (B, 2 * spots) in [0, 1]
    rows, columns = torch.arange(height).to(x) / height, torch.arange(width).to(x) / width
    for centre in centres.view(len(x), -1, 2).unbind(1):
        down, right = centre.unbind(1)  # (B,) each
        square = (rows[None, :, None] - down[:, None, None]) ** 2 + (columns[None, None, :] - right[:, None, None]) ** 2
        spot = torch.exp(-square / (2 * 0.03**2))[:, None]  # (B, 1, H, W)
        x = x + (1 - x) * spot
    return x


# name -> function, its amount at each severity
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "blur": (blur, (0.01, 0.02, 0.03)),
    "jpeg": (jpeg, (40, 20, 8)),
    "darkness": (darkness, (0.75, 0.55, 0.35)),
    "contrast": (contrast, (0.7, 0.5, 0.3)),
    "colour_cast": (colour_cast, (0.1, 0.2, 0.3)),
    "noise": (sensor_noise, (0.03, 0.06, 0.12)),
    "glare": (glare, (4, 8, 16)),
}


def corrupt(name: str, severity: int, x: Tensor, noise: NoiseSampler) -> Tensor:
    """x (B, 3, H, W) in [0, 1] with the defect at severity 1, 2 or 3, again in [0, 1]."""
    function, amounts = CORRUPTIONS[name]
    return function(x, amounts[severity - 1], noise).clamp(0, 1)


def evaluate_corruptions(target: ModelUnderAttack, store: ImageDataset, subset: np.ndarray, journal: StepCache) -> pd.DataFrame:
    """corruptions.csv."""
    parts = []
    for name, severity in itertools.product(CORRUPTIONS, SEVERITIES):

        def answer(name: str = name, severity: int = severity) -> dict[str, Any]:
            pictures = (corrupt(name, severity, x, noise) for _, x, _, noise in target.batches(subset))
            return {"logits": torch.cat([predict_logits(target.model, x).cpu() for x in pictures])}

        probability = journal(f"{name} {severity}", answer)["logits"].softmax(1).numpy()
        images = store.manifest.iloc[target.split.rows[subset]][["path", "label"]].reset_index(drop=True)
        answers = np.array(store.classes)[probability.argmax(1)]
        parts.append(
            images.assign(corruption=name, severity=severity, prediction=answers, confidence=probability.max(1).astype(float))
        )
    return pd.concat(parts, ignore_index=True)
