"""Tensors as pictures, and pictures as PNG files, without loss."""

import io

import numpy as np
from PIL import Image
from torch import Tensor

PERCENTILE = 99  # of a gradient's magnitudes: white from there on


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def perturbation_picture(delta: Tensor) -> np.ndarray:
    """A perturbation (3, H, W) on mid gray, its largest change black or white: (H, W, 3) uint8."""
    return to_uint8(0.5 + 0.5 * delta / delta.abs().max().clamp_min(1e-12))


def gradient_picture(gradient: Tensor) -> np.ndarray:
    """Largest absolute value over the channels of (3, H, W): (H, W) uint8, white is large."""
    magnitude = gradient.abs().amax(0).cpu().numpy()
    scale = max(float(np.percentile(magnitude, PERCENTILE)), 1e-30)
    return np.rint(np.clip(magnitude / scale, 0, 1) * 255).astype(np.uint8)


def png_bytes(pixels: np.ndarray) -> bytes:
    """The file of (H, W, 3) or (H, W) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
