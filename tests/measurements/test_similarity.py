"""SSIM against an implementation with SciPy's filters, and its limits."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.measurements.similarity import structural_similarity


def reference(x: np.ndarray, y: np.ndarray) -> float:
    """After Wang et al. 2004, channel by channel in double precision."""
    values = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):

        def mean(z):
            return gaussian_filter(z, 1.5, radius=5, mode="mirror")

        mean_a, mean_b = mean(a), mean(b)
        var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
        ssim = (2 * mean_a * mean_b + 1e-4) * (2 * (mean(a * b) - mean_a * mean_b) + 9e-4)
        values.append(ssim / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize("change", [8 / 255, 0.3, 1.0])
def test_ssim_is_that_of_an_independent_implementation(change):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.random((4, 3, 40, 48)), (0, 0, 3, 3)).astype(np.float32) * 2
    x = np.clip(smooth, 0, 1)
    y = np.clip(x + change * rng.uniform(-1, 1, x.shape), 0, 1).astype(np.float32)
    found = structural_similarity(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert found == pytest.approx([reference(a, b) for a, b in zip(x, y, strict=True)], abs=2e-4)


def test_ssim_of_images_smaller_than_its_window_is_a_number():
    small = torch.rand(1, 3, 4, 5)
    assert structural_similarity(small, 1 - small).isfinite().all()
