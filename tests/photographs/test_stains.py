"""The stain that is estimated from an image's mean color."""

import numpy as np
import pytest

from stages.photographs.stains import ACETIC, GREEN, IODINE, estimate_stain


@pytest.mark.parametrize(
    ("color", "stain"),
    [
        ((200, 120, 120), ACETIC),
        ((190, 150, 140), ACETIC),
        ((140, 80, 30), IODINE),
        ((60, 120, 90), GREEN),
        ((0, 0, 0), ACETIC),
    ],
)
def test_stain_is_estimated_from_mean_color(color, stain):
    assert estimate_stain(np.full((4, 4, 3), color, np.uint8)) == stain
