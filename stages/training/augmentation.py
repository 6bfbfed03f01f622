"""Random changes of a training batch, on the batch's own device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.params import AugmentParams

LUMA = (0.299, 0.587, 0.114)  # weights of ITU-R BT.601


def augment(x: Tensor, p: AugmentParams, random: Tensor) -> Tensor:
    """Flip, rotate, zoom and shift in one resampling, then change the colors.

    The photographs have no upright side and no fixed light.

    Args:
        x: (B, 3, H, W) in [0, 1].
        p: the largest changes.
        random: (B, 8), uniform in [0, 1): all random numbers that are used.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    random = random.to(x.device)
    flip, turn, zoom, dx, dy, brightness, contrast, saturation = random.unbind(1)  # (B,) each
    angle = (turn * 4).floor() * (math.pi / 2) * p.rotate90
    size = 1 + p.zoom * (2 * zoom - 1)
    # Whole pixels: without zoom nothing is interpolated, and training images stay as sharp as
    # test images.
    shifts = [
        (p.shift * side * (2 * d - 1)).round() * 2 / side
        for d, side in ((dx, x.shape[3]), (dy, x.shape[2]))
    ]
    mirror = torch.where(flip < 0.5 * p.flip, -1.0, 1.0)
    cos, sin = angle.cos().round(decimals=6) * size, angle.sin().round(decimals=6) * size
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin, shifts[0]], 1),
            torch.stack([sin * mirror, cos, shifts[1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def factor(value: Tensor, spread: float) -> Tensor:
        return (1 + spread * (2 * value - 1)).view(-1, 1, 1, 1)

    luma = torch.tensor(LUMA, dtype=x.dtype).to(x.device, non_blocking=True).view(1, 3, 1, 1)
    gray = (x * luma).sum(1, keepdim=True)  # (B, 1, H, W)
    x = gray + (x - gray) * factor(saturation, p.saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * factor(contrast, p.contrast)
    return (x * factor(brightness, p.brightness)).clamp(0, 1)
