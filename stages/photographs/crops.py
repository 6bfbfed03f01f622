"""Which part of an image is kept: all of it, the central square, or one around the cervix."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

GRID = 40  # pixels: the shorter side of the preview in which the cervix is looked for
MARGIN = 0.1  # added to each side of the detected region, as a fraction of its extent
EM_ITERATIONS, MIN_VARIANCE = 30, 1e-3  # of the mixture model
DARK = 30  # added to the brightness of a pixel, so that redness is steady for nearly black ones
# A plausible region:
MIN_AREA, MAX_AREA = 0.08, 0.9  # fraction of the frame that it covers
MIN_FILL_RATIO = 0.45  # fraction of its bounding box that it fills
MAX_ASPECT_RATIO = 2.5  # its longer side / its shorter side


@dataclass(frozen=True)
class CropBox:
    """A part of an image, in fractions (0..1) of its width and height.

    kind: none, square, cervix, or fallback (the central square for want of a cervix).
    """

    left: float
    top: float
    right: float
    bottom: float
    kind: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cut off."""
        return (self.left, self.top, self.right, self.bottom) == (0.0, 0.0, 1.0, 1.0)


def find_crop(image: Image.Image, crop: str) -> CropBox:
    """The part of an upright RGB image to keep; crop: none, square or cervix."""
    if crop == "none":
        return CropBox(0.0, 0.0, 1.0, 1.0, "none")
    width, height = image.size
    region = _detect_cervix(image) if crop == "cervix" else None
    if region is None:
        kind = "fallback" if crop == "cervix" else crop
        return _square(width, height, width / 2, height / 2, min(width, height), kind)
    left, top, right, bottom = region
    side = min(max(right - left, bottom - top) * (1 + 2 * MARGIN), width, height)
    return _square(width, height, (left + right) / 2, (top + bottom) / 2, side, "cervix")


def _square(width: int, height: int, x: float, y: float, side: float, kind: str) -> CropBox:
    """The square with this center and side in pixels, shifted into the frame."""
    left = min(max(x - side / 2, 0), width - side)
    top = min(max(y - side / 2, 0), height - side)
    return CropBox(left / width, top / height, (left + side) / width, (top + side) / height, kind)


def _detect_cervix(image: Image.Image) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom in pixels of the reddish region in the middle, or None.

    After several entries to the 2017 Kaggle competition: a mixture of two Gaussians in "Ra space",
    that is distance from the center of the frame (R) and redness (a). The component nearer to the
    center is taken for the cervix, its largest connected part for the region.
    """
    scale = GRID / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    preview = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    smooth = ndimage.gaussian_filter(np.asarray(preview, np.float64), (1, 1, 0))
    red, green, blue = smooth.transpose(2, 0, 1)
    redness = (red - (green + blue) / 2) / (red + green + blue + DARK)
    rows, columns = redness.shape
    y, x = np.mgrid[:rows, :columns]
    distance = np.hypot((x - (columns - 1) / 2) / columns, (y - (rows - 1) / 2) / rows)
    responsibility, nearer = _fit_two_component_gmm(
        _standardize(distance), _standardize(redness), distance.ravel() < np.median(distance)
    )
    inside = ((responsibility > 0.5) == nearer).reshape(redness.shape)
    inside = ndimage.binary_fill_holes(ndimage.binary_opening(inside, iterations=2))
    labels, count = ndimage.label(inside)
    if count == 0:
        return None
    region = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    vertical, horizontal = ndimage.find_objects(region.astype(int))[0]
    high, wide = vertical.stop - vertical.start, horizontal.stop - horizontal.start
    if (
        not MIN_AREA <= region.mean() <= MAX_AREA
        or max(high, wide) > MAX_ASPECT_RATIO * min(high, wide)
        or region.sum() < MIN_FILL_RATIO * high * wide
    ):
        return None
    across, down = image.width / columns, image.height / rows
    return (
        horizontal.start * across,
        vertical.start * down,
        horizontal.stop * across,
        vertical.stop * down,
    )


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()).ravel() / (values.std() + 1e-9)


def _fit_two_component_gmm(
    x: np.ndarray, y: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Fit two Gaussians to points of the plane by expectation maximization.

    Dempster, Laird and Rubin 1977. The logarithm of a Gaussian is a sum of six terms in x and y, so
    that a step is two products with the table of terms. scikit-learn's GaussianMixture gives the
    same (a test compares them), but would cost each worker 50 MiB.

    Args:
        x: float (N,).
        y: float (N,).
        start: bool (N,), the points that are first assigned to the first Gaussian.

    Returns:
        How much each point belongs to the first, 0..1; whether the first has the smaller mean x.
    """
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])  # (6, N)
    responsibility = start.astype(float)
    for _ in range(EM_ITERATIONS):
        responsibility = responsibility.clip(1e-6, 1 - 1e-6)  # so that neither vanishes
        sums = terms @ np.stack([responsibility, 1 - responsibility], axis=1)  # (6, 2)
        log_odds = (_log_gaussian(*sums[:, 0]) - _log_gaussian(*sums[:, 1])) @ terms
        responsibility = (1 + np.tanh(log_odds / 2)) / 2
    return responsibility, bool(sums[1, 0] / sums[0, 0] <= sums[1, 1] / sums[0, 1])


def _log_gaussian(n: float, x: float, y: float, xx: float, xy: float, yy: float) -> np.ndarray:
    """The logarithm of weight x density, but for a constant, as the factors (6,) of its terms.

    The arguments are the sums of the terms over the points, weighted by responsibility.
    """
    x, y = x / n, y / n
    var_x, cov, var_y = xx / n - x * x + MIN_VARIANCE, xy / n - x * y, yy / n - y * y + MIN_VARIANCE
    determinant = var_x * var_y - cov * cov
    a, b, c = var_y / determinant, -cov / determinant, var_x / determinant  # the inverse
    constant = np.log(n) - np.log(determinant) / 2 - (a * x * x + 2 * b * x * y + c * y * y) / 2
    return np.array([constant, a * x + b * y, b * x + c * y, -a / 2, -b, -c / 2])
