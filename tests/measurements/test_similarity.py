"""SSIM against an implementation with SciPy's filters, and its limits."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.attacks.similarity import structural_similarity


def reference(x: np.ndarray, y: np.ndarray) -> float:
    """After Wang et al. 2004, channel by channel in double precision."""
    values = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):

        def mean(z):
            return gaussian_filter(z, 1.5, radius=5, mode="mirror")

        mean_a, mean_b = mean(a), mean(b)
        cov = [
            mean(p * q) - m * n
            for p, q, m, n in (
                (a, a, mean_a, mean_a),
                (b, b, mean_b, mean_b),
                (a, b, mean_a, mean_b),
            )
        ]
        ssim = (2 * mean_a * mean_b + 1e-4) * (2 * cov[2] + 9e-4)
        values.append(ssim / ((mean_a**2 + mean_b**2 + 1e-4) * (cov[0] + cov[1] + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize("change", [8 / 255, 0.3, 1.0])
def test_ssim_is_that_of_an_independent_implementation(change):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.random((4, 3, 40, 48)), (0, 0, 3, 3)).astype(np.float32) * 2
    x = np.clip(smooth, 0, 1)
    y = np.clip(x + change * rng.uniform(-1, 1, x.shape), 0, 1).astype(np.float32)
    found = structural_similarity(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert found == pytest.approx([reference(a, b) for a, b in zip(x, y, strict=True)], abs=2e-4)


def test_ssim_is_one_of_the_same_image_symmetric_and_falls_with_the_noise():
    x = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    values = [structural_similarity(x, (x + scale * noise).clamp(0, 1)) for scale in (0, 0.1, 0.5)]
    assert torch.allclose(values[0], torch.ones(3))
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()
    assert torch.allclose(
        structural_similarity(x, noise.abs()), structural_similarity(noise.abs(), x), atol=1e-6
    )
    assert structural_similarity(torch.rand(1, 3, 4, 5), torch.rand(1, 3, 4, 5)).isfinite().all()
