"""How much of their fine detail two images share, after one is aligned to the other by an affine map."""

import numpy as np
from scipy.ndimage import gaussian_filter

PYRAMID = ((16, 5), (32, 4), (64, 3))  # (side in pixels, steps) of the alignment, coarse to fine
MAX_WARP = 0.4  # a larger displacement, in half widths, is a wrong alignment, not a slight crop
NOISE_LEVEL = 2.5  # intensity levels of 255: weaker detail than this isn't amplified


def fine_similarity(first: np.ndarray, second: np.ndarray, least: float = -1.0) -> np.ndarray:
    """Correlation of the fine detail of thumbnails, pair by pair after alignment.

    Symmetric only nearly so: the second image is warped onto the first.

    Args:
        first: uint8 (B, 64, 64).
        second: uint8 (B, 64, 64).
        least: a pair that agrees less on a coarser level keeps that level's value: finer detail agrees less, not more.

    Returns:
        float (B,), in [-1, 1].
    """
    result = np.ones(len(first))
    warps = np.tile(np.eye(2, 3), (len(first), 1, 1))
    active = np.arange(len(first))  # pairs that agree so far
    for side, steps in PYRAMID:
        fixed, moving = (bandpass(_reduce(images[active], side), 1, 4) for images in (first, second))
        result[active], warps[active] = _align(fixed, moving, warps[active], steps)
        active = active[result[active] >= least]
    warped, inside = _warp(second[active], warps[active])
    result[active] = _correlation(bandpass(first[active], 1, 2), bandpass(warped, 1, 2), inside)
    return result


def bandpass(images: np.ndarray, finest: float, coarsest: float) -> np.ndarray:
    """Structure between two scales (Gaussian widths in pixels), its contrast evened out against exposure and shading.

    images: (B, n, n), 0..255.
    """
    images = images.astype(np.float32)
    band = gaussian_filter(images, (0, finest, finest)) - gaussian_filter(images, (0, coarsest, coarsest))
    return band / np.sqrt(gaussian_filter(band**2, (0, coarsest, coarsest)) + NOISE_LEVEL**2)


def _reduce(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks: (B, n, n) -> (B, side, side), float."""
    factor = thumbnails.shape[1] // side
    return thumbnails.reshape(len(thumbnails), side, factor, side, factor).mean(axis=(2, 4), dtype=np.float32)


def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates x and y of the pixel centers, -1..1."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))


def _warp(images: np.ndarray, warps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, n, n) seen through affine maps (B, 2, 3) of -1..1 coordinates, bilinear, and where those lie inside."""
    count, side = images.shape[:2]
    images, warps = images.astype(np.float32), warps.astype(np.float32)
    x, y = _coordinates(side)
    u, v = (warps[:, k, 0, None, None] * x + warps[:, k, 1, None, None] * y + warps[:, k, 2, None, None] for k in (0, 1))
    column, row = (((value + 1) / 2 * side - 0.5).clip(0, side - 1) for value in (u, v))
    left, top = (np.minimum(value.astype(int), side - 2) for value in (column, row))
    right_weight, lower_weight = column - left, row - top
    corner = (top * side + left).reshape(count, side * side)
    flat = images.reshape(count, side * side)
    nw, ne, sw, se = (np.take_along_axis(flat, corner + o, 1).reshape(count, side, side) for o in (0, 1, side, side + 1))
    upper, lower = nw + right_weight * (ne - nw), sw + right_weight * (se - sw)
    return upper + lower_weight * (lower - upper), (abs(u) <= 1) & (abs(v) <= 1)


def _align(fixed: np.ndarray, moving: np.ndarray, warps: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (B,) after alignment, and the maps (B, 2, 3); -1 and no map where the alignment diverges.

    Gauss-Newton steps: Lucas and Kanade 1981 in the inverse compositional form of Baker and Matthews 2004.
    """
    count, side = fixed.shape[:2]
    x, y = _coordinates(side)
    down, across = np.gradient(fixed * side / 2, axis=(1, 2))
    slopes = np.stack([across * x, across * y, across, down * x, down * y, down], axis=-1)  # (B, side, side, 6)
    identity = np.tile(np.eye(3), (count, 1, 1))
    diverged = np.zeros(count, bool)
    for _ in range(steps):
        warped, inside = _warp(moving, warps)
        difference = (warped - fixed) * inside
        slope = (slopes * inside[..., None]).reshape(count, side * side, 6)
        normal = (slope.transpose(0, 2, 1) @ slope).astype(np.float64)
        gradient = (slope.transpose(0, 2, 1) @ difference.reshape(count, side * side, 1)).astype(np.float64)
        # Damped, so that a flat image has a solution, too.
        normal += 1e-4 * (np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(6)
        change = np.linalg.solve(normal, gradient).reshape(count, 2, 3)
        diverged |= abs(change).max(axis=(1, 2)) > MAX_WARP
        step, whole = identity.copy(), identity.copy()
        step[:, :2] += np.where(diverged[:, None, None], 0, change)
        whole[:, :2] = warps
        warps = (whole @ np.linalg.inv(step))[:, :2]
        diverged |= abs(warps - np.eye(2, 3)).max(axis=(1, 2)) > MAX_WARP
        warps = np.where(diverged[:, None, None], np.eye(2, 3), warps)
    warped, inside = _warp(moving, warps)
    return np.where(diverged, -1, _correlation(fixed, warped, inside)), warps


def _correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pair by pair over the pixels inside: (B, n, n) -> (B,)."""
    count = inside.sum(axis=(1, 2), keepdims=True)
    a, b = ((values - (values * inside).sum(axis=(1, 2), keepdims=True) / count) * inside for values in (a, b))
    power = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    return (a * b).sum(axis=(1, 2)) / np.sqrt(power + 1e-12)
