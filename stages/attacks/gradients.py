"""Where the gradient of a model points: pictures of it, and the share of it in the middle of the image.

The gradient of the margin at an image says which pixels an attacker would change; it explains no decision (Adebayo et al.,
arXiv:1810.03292). That of robust models follows the shapes in an image more closely (Tsipras et al., arXiv:1805.12152).
"""

import numpy as np
import pandas as pd
from torch import Tensor

from stages.attacks.perturbations import margin_gradient
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import NoiseSampler
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.models.inference import frozen_eval_mode

PERCENTILE = 99  # of a picture's magnitudes: white from there on


def input_gradient(target: ModelUnderAttack, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (B, 3, H, W) of the margin loss at x, in float32."""
    with frozen_eval_mode(target.fused_model):
        return margin_gradient(target.fused_model, x, y)


def central_energy(gradient: Tensor) -> Tensor:
    """Share of the squared gradient (B, 3, H, W) in the central quarter of the area, (B,): 0.25 where it is uniform."""
    height, width = gradient.shape[-2:]
    largest = (
        gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
    )  # squares of small numbers would vanish
    energy = (gradient / largest).square().sum(1)  # (B, H, W)
    center = energy[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    return center.sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-30)


def gradient_shares(
    target: ModelUnderAttack, dataset: ImageDataset, cache: StepCache
) -> pd.DataFrame:
    """gradients.csv: `central_energy` of all images."""

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        return {"share": central_energy(input_gradient(target, x, y))}

    positions = np.arange(len(target.split))
    shares = cache.get_or_compute("gradients", lambda: target.map_batches(positions, compute))[
        "share"
    ]
    images = dataset.manifest.iloc[target.split.rows][["path", "label"]].reset_index(drop=True)
    return images.assign(central_share=shares.numpy())


def gradient_picture(gradient: Tensor) -> np.ndarray:
    """Largest absolute value over the channels of (3, H, W), scaled to its 99th percentile: (H, W) uint8, white is large."""
    magnitude = gradient.abs().amax(0).cpu().numpy()
    scale = max(float(np.percentile(magnitude, PERCENTILE)), 1e-30)
    return np.rint(np.clip(magnitude / scale, 0, 1) * 255).astype(np.uint8)
