"""How much of their fine detail two images share, after an affine map has aligned them.

The alignment starts from the displacement that correlates best, and the sharper image is blurred
like the other one: another crop and another focus of the same scene aren't another scene.
"""

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

PYRAMID = ((16, 3), (32, 4), (64, 3))  # (side in pixels, steps) of the alignment, coarse to fine
START = 32  # pixels, side of the images whose displacement is searched first
MAX_SHIFT = 10  # of those pixels, to each side: 31%
SAME_SCENE = 0.55  # correlation after that displacement from which an alignment is tried
# Limits beyond which an alignment is wrong, in half widths: for the change of one step, and for the
# whole map, whose displacements (last column) may be larger.
MAX_CHANGE = 0.4
MAX_WARP = np.array([[MAX_CHANGE, MAX_CHANGE, 0.7]] * 2)
MAX_STRETCH = 0.15  # half the difference between the scales in two directions
BORDER = 1 / 16  # of the side: nearer to an edge, filters see other surroundings in each image
BLURS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # Gaussian widths for the sharper image, in pixels of 64
NOISE_LEVEL = 2.5  # intensity levels of 255: weaker detail than this isn't amplified


def fine_similarity(first: np.ndarray, second: np.ndarray, least: float = -1.0) -> np.ndarray:
    """Correlation of the fine detail of thumbnails, pair by pair after alignment.

    The correlation r over an overlap of fraction f counts as 1 - (1 - r) / f: a smaller overlap
    must agree better. Only nearly symmetric, because the second image is warped onto the first.

    Args:
        first: uint8 (B, 64, 64).
        second: uint8 (B, 64, 64).
        least: a pair that agrees less at a coarser level keeps the value of that level, because
            finer detail agrees less, not more.

    Returns:
        float (B,), in [-1, 1].
    """
    result, warps = _best_displacement(first, second)
    active = np.flatnonzero(result >= min(least, SAME_SCENE))  # pairs that agree so far
    first, second = first.astype(np.float32), second.astype(np.float32)
    for side, steps in PYRAMID:
        if side == first.shape[1]:
            first[active], second[active] = _equally_sharp(first[active], second[active])
        fixed = bandpass(_reduce(first[active], side), 1, 4)
        moving = bandpass(_reduce(second[active], side), 1, 4)
        result[active], warps[active] = _align(fixed, moving, warps[active], steps)
        active = active[result[active] >= least]
    warped, inside = _warp(second[active], warps[active])
    agreement = _correlation(bandpass(first[active], 1, 2), bandpass(warped, 1, 2), inside)
    result[active] = 1 - (1 - agreement) / np.maximum(inside.mean(axis=(1, 2)), 1e-3)
    return result.clip(-1)


def unaligned_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of coarse structure as it stands, pair by pair: uint8 (B, 64, 64) -> (B,).

    Near 1 for one photograph that was resized or encoded again; another framing or light lowers it.
    """
    coarse, other = _reduce(first, START), _reduce(second, START)
    return _correlation(coarse, other, np.ones(coarse.shape, bool))


def _best_displacement(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest correlation (B,) over displacements up to MAX_SHIFT; those as maps (B, 2, 3)."""
    size = START + MAX_SHIFT + 6  # zero padding, so that none wraps around; a multiple of 16
    spectra = []
    for images in (first, second):
        band = bandpass(_reduce(images, START), 1, 4)
        band = band / np.sqrt((band**2).sum(axis=(1, 2), keepdims=True) + 1e-12)
        spectra.append(rfft2(band, (size, size)))
    # By size, so that the smallest displacement wins a tie.
    shifts = np.array(sorted(range(-MAX_SHIFT, MAX_SHIFT + 1), key=abs))
    products = irfft2(spectra[0].conj() * spectra[1], (size, size))[:, shifts][:, :, shifts]
    overlap = 1 - abs(shifts) / START
    values = (products / np.sqrt(np.outer(overlap, overlap))).reshape(len(first), -1)
    down, right = np.divmod(values.argmax(axis=1), len(shifts))
    warps = np.tile(np.eye(2, 3), (len(first), 1, 1))
    warps[:, :, 2] = np.stack([shifts[right], shifts[down]], axis=1) * 2 / START
    return values.max(axis=1), warps


def _equally_sharp(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair, the sharper image blurred like the other one, as far as BLURS go."""
    # Slightly smoothed, because noise counts as sharpness.
    smooth = [gaussian_filter(images, (0, 1, 1)) for images in (first, second)]
    sharpness = [_sharpness(images) for images in smooth]
    pair = [first.copy(), second.copy()]
    for one, other in ((0, 1), (1, 0)):
        rows = np.flatnonzero(sharpness[one] > sharpness[other])
        blurred = [gaussian_filter(smooth[one][rows], (0, width, width)) for width in BLURS]
        reached = [sharpness[one][rows], *map(_sharpness, blurred)]
        best = abs(np.log(np.array(reached) / sharpness[other][rows])).argmin(axis=0)
        for number, width in enumerate(BLURS, 1):
            chosen = rows[best == number]
            pair[one][chosen] = gaussian_filter(pair[one][chosen], (0, width, width))
    return pair[0], pair[1]


def _sharpness(images: np.ndarray) -> np.ndarray:
    """The mean squared frequency (B,), whatever the contrast.

    That is the power of the second differences relative to that of the first ones.
    """
    dx, dy = np.diff(images, axis=2), np.diff(images, axis=1)
    first = _power(dx) + _power(dy)
    second = _power(np.diff(dx, axis=2)) + _power(np.diff(dy, axis=1))
    return (second + 1e-3) / (first + 1e-3)


def _power(images: np.ndarray) -> np.ndarray:
    return (images**2).mean(axis=(1, 2))


def bandpass(images: np.ndarray, finest: float, coarsest: float) -> np.ndarray:
    """Structure between two scales, with its contrast evened out against exposure and shading.

    Args:
        images: (B, n, n), 0..255.
        finest: Gaussian width in pixels.
        coarsest: Gaussian width in pixels.
    """
    images = images.astype(np.float32)
    fine = gaussian_filter(images, (0, finest, finest))
    band = fine - gaussian_filter(images, (0, coarsest, coarsest))
    return band / np.sqrt(gaussian_filter(band**2, (0, coarsest, coarsest)) + NOISE_LEVEL**2)


def _reduce(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks: (B, n, n) -> (B, side, side), float."""
    count, factor = len(thumbnails), thumbnails.shape[1] // side
    # The rows first: far faster than both at once.
    rows = thumbnails.reshape(count, side, factor, side * factor).sum(axis=2, dtype=np.float32)
    return rows.reshape(count, side, side, factor).sum(axis=3) / factor**2


def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates x and y of the pixel centers, -1..1."""
    axis = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)
    return np.meshgrid(axis, axis)


def _warp(images: np.ndarray, warps: np.ndarray, limit: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images seen through affine maps, by bilinear interpolation.

    Args:
        images: (B, n, n).
        warps: (B, 2, 3), maps of coordinates in -1..1.
        limit: absolute coordinates above it lie outside, before as well as after the map.

    Returns:
        The warped images, and bool (B, n, n): which pixels lie inside.
    """
    count, side = images.shape[:2]
    images, warps = images.astype(np.float32), warps.astype(np.float32)
    x, y = _coordinates(side)
    u, v = (
        warps[:, k, 0, None, None] * x + warps[:, k, 1, None, None] * y + warps[:, k, 2, None, None]
        for k in (0, 1)
    )
    column, row = (((value + 1) / 2 * side - 0.5).clip(0, side - 1) for value in (u, v))
    left, top = (np.minimum(value.astype(int), side - 2) for value in (column, row))
    right_weight, lower_weight = column - left, row - top
    corner = (top * side + left).reshape(count, side * side)
    flat = images.reshape(count, side * side)
    nw, ne, sw, se = (
        np.take_along_axis(flat, corner + offset, 1).reshape(count, side, side)
        for offset in (0, 1, side, side + 1)
    )
    upper, lower = nw + right_weight * (ne - nw), sw + right_weight * (se - sw)
    inside = (abs(u) <= limit) & (abs(v) <= limit) & (abs(x) <= limit) & (abs(y) <= limit)
    return upper + lower_weight * (lower - upper), inside


def _stretch(warps: np.ndarray) -> np.ndarray:
    """Half the difference of the principal scales of maps (B, 2, 3): 0 for rotation and zoom."""
    return np.hypot(warps[:, 0, 0] - warps[:, 1, 1], warps[:, 0, 1] + warps[:, 1, 0]) / 2


def _align(
    fixed: np.ndarray, moving: np.ndarray, warps: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (B,) after alignment, and the maps (B, 2, 3); -1 and identity if it diverges.

    Gauss-Newton steps: Lucas and Kanade 1981 in the inverse compositional form of Baker and
    Matthews 2004.
    """
    count, side = fixed.shape[:2]
    x, y = _coordinates(side)
    down, across = np.gradient(fixed * side / 2, axis=(1, 2))
    slopes = np.stack([across * x, across * y, across, down * x, down * y, down], axis=-1)
    identity = np.tile(np.eye(3), (count, 1, 1))
    diverged = np.zeros(count, bool)
    for _ in range(steps):
        warped, inside = _warp(moving, warps, 1 - 2 * BORDER)
        difference = ((warped - fixed) * inside).reshape(count, side * side, 1)
        slope = (slopes * inside[..., None]).reshape(count, side * side, 6)
        normal = (slope.transpose(0, 2, 1) @ slope).astype(np.float64)
        gradient = (slope.transpose(0, 2, 1) @ difference).astype(np.float64)
        # Damped, so that a flat image has a solution, too.
        normal += 1e-4 * (np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(6)
        change = np.linalg.solve(normal, gradient).reshape(count, 2, 3)
        diverged |= abs(change).max(axis=(1, 2)) > MAX_CHANGE
        step, whole = identity.copy(), identity.copy()
        step[:, :2] += np.where(diverged[:, None, None], 0, change)
        whole[:, :2] = warps
        warps = (whole @ np.linalg.inv(step))[:, :2]
        diverged |= (abs(warps - np.eye(2, 3)) > MAX_WARP).any(axis=(1, 2))
        diverged |= _stretch(warps) > MAX_STRETCH
        warps = np.where(diverged[:, None, None], np.eye(2, 3), warps)
    warped, inside = _warp(moving, warps, 1 - 2 * BORDER)
    return np.where(diverged, -1, _correlation(fixed, warped, inside)), warps


def _correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pair by pair over the pixels inside: (B, n, n) -> (B,)."""
    count = inside.sum(axis=(1, 2), keepdims=True)
    a, b = (
        (values - (values * inside).sum(axis=(1, 2), keepdims=True) / count) * inside
        for values in (a, b)
    )
    power = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    return (a * b).sum(axis=(1, 2)) / np.sqrt(power + 1e-12)
