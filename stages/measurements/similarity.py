"""How much an image was changed, for an eye rather than for a norm."""

from torch import Tensor
from torchvision.transforms.v2 import functional as TF

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
C1, C2 = 0.01**2, 0.03**2  # for pixel values in [0, 1]


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of images (B, 3, H, W) in [0, 1]: (B,), at most 1.

    doi:10.1109/TIP.2003.819861. Mean over pixels and channels, Gaussian window, biased covariances:
    ``skimage.metrics.structural_similarity`` with ``gaussian_weights=True,
    use_sample_covariance=False``, but for the border, which is mirrored here and cut off there.
    """
    side = min(WINDOW, 2 * min(x.shape[-2:]) - 1)  # mirrored once at most

    def mean(z: Tensor) -> Tensor:
        return TF.gaussian_blur(z, [side, side], [SIGMA, SIGMA])

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * (2 * covariance + C2) / (variance_x + variance_y + C2)).mean((1, 2, 3))
