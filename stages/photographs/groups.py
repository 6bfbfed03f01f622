"""Which photographs belong together: copies, re-encoded or slightly cropped copies, near-identical shots, one patient's.

Every round, centred cervix resembles every other one: at 32 x 32 grey pixels the correlation of two patients reaches 0.85
(AnnoCerv) or 0.96 (the synthetic sample), and linking above such a value chains strangers together. So two pictures are
compared in two steps: coarse structure proposes a few neighbours of each picture; the pair is then aligned by an affine
map, and the fine detail alone (vessels, glints, folds; the shape of the cervix is subtracted) must agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from stages.photographs.listing import ImageRecord
from stages.photographs.reading import Map

COARSE = 24  # pixels, side of the pictures that propose neighbours
NEIGHBOURS = 4  # proposals per picture; chains of duplicates need only one right one each
PROPOSE = 0.6  # coarse correlation from which a neighbour is proposed: a crop of 6 % a side keeps 0.75
BLOCK = 512  # rows of the correlation matrix that are in memory at a time
BATCH = 32  # pairs that are compared at once
PYRAMID = ((16, 5), (32, 4), (64, 3))  # (side in pixels, steps) of the alignment, coarse to fine
MAX_WARP = 0.4  # a larger displacement, in half widths, is a wrong alignment, not a slight crop
NOISE = 2.5  # grey levels: weaker detail than this isn't amplified
COPY, NEAR = "copy", "near"


@dataclass(frozen=True)
class DuplicatePair:
    """Two rows that show the same. kind: copy (equal bytes) or near; similarity: agreement of fine detail, 1 for copies."""

    first: int
    second: int
    kind: str
    similarity: float


def find_duplicates(hashes: Sequence[str], thumbnails: np.ndarray, similarity: float, map_: Map) -> list[DuplicatePair]:
    """All links, in order of rows. hashes: of the content; thumbnails: uint8 (N, 64, 64).

    Copies are linked to the first of them; only first ones are compared with others.
    """
    firsts: dict[str, int] = {}
    links = [DuplicatePair(firsts[h], i, COPY, 1.0) for i, h in enumerate(hashes) if firsts.setdefault(h, i) != i]
    rows = np.array(sorted(firsts.values()))
    pairs = rows[candidate_pairs(thumbnails[rows])]
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    found = map_(
        partial(_similarity, least=similarity), ((thumbnails[batch[:, 0]], thumbnails[batch[:, 1]]) for batch in batches)
    )
    progress = {"total": len(batches), "unit": "pair", "unit_scale": BATCH, "disable": None}  # on a terminal only
    for batch, values in tqdm(zip(batches, found, strict=True), "comparing", **progress):
        near = zip(batch.tolist(), values.tolist(), strict=True)
        links += [DuplicatePair(a, b, NEAR, value) for (a, b), value in near if value >= similarity]
    return sorted(links, key=lambda link: (link.first, link.second))


def candidate_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Each picture with its nearest in coarse structure: pairs of rows, int (M, 2), sorted, the smaller row first."""
    small = [np.asarray(Image.fromarray(one).resize((COARSE, COARSE), Image.Resampling.BOX)) for one in thumbnails]
    coarse = _detail(np.stack(small), 1, 4).reshape(len(small), -1)
    coarse -= coarse.mean(axis=1, keepdims=True)
    coarse /= np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(coarse), BLOCK):
        block = coarse[start : start + BLOCK] @ coarse.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -1
        nearest = np.argsort(-block, axis=1, kind="stable")[:, :NEIGHBOURS]
        for row, others in enumerate(nearest, start):
            pairs |= {(min(row, o), max(row, o)) for o in others.tolist() if block[row - start, o] >= PROPOSE}
    return np.array(sorted(pairs), dtype=int).reshape(-1, 2)


def _similarity(pairs: tuple[np.ndarray, np.ndarray], least: float) -> np.ndarray:
    return fine_similarity(*pairs, least)


def fine_similarity(first: np.ndarray, second: np.ndarray, least: float = -1.0) -> np.ndarray:
    """Correlation of the fine detail of thumbnails, uint8 (B, 64, 64) each, pair by pair after alignment: float (B,), -1..1.

    A pair that agrees less than `least` on a coarser level keeps that level's value: finer detail agrees less, not more.
    Symmetric only nearly so: the second picture is warped onto the first.
    """
    result = np.ones(len(first))
    warps = np.tile(np.eye(2, 3), (len(first), 1, 1))
    open_ = np.arange(len(first))  # pairs that agree so far
    for side, steps in PYRAMID:
        fixed, moving = (_detail(_reduce(one[open_], side), 1, 4) for one in (first, second))
        result[open_], warps[open_] = _align(fixed, moving, warps[open_], steps)
        open_ = open_[result[open_] >= least]
    warped, inside = _warp(second[open_], warps[open_])
    result[open_] = _correlation(_detail(first[open_], 1, 2), _detail(warped, 1, 2), inside)
    return result


def _reduce(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks: (B, n, n) -> (B, side, side), float."""
    factor = thumbnails.shape[1] // side
    return thumbnails.reshape(len(thumbnails), side, factor, side, factor).mean(axis=(2, 4), dtype=np.float32)


def _detail(grey: np.ndarray, finest: float, coarsest: float) -> np.ndarray:
    """Structure between two scales (Gaussian widths in pixels), its contrast evened out against exposure and shading.

    grey: (B, n, n), 0..255.
    """
    grey = grey.astype(np.float32)
    band = gaussian_filter(grey, (0, finest, finest)) - gaussian_filter(grey, (0, coarsest, coarsest))
    return band / np.sqrt(gaussian_filter(band**2, (0, coarsest, coarsest)) + NOISE**2)


def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, -1..1."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.meshgrid(axis.astype(np.float32), axis.astype(np.float32))


def _warp(images: np.ndarray, warps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, n, n) seen through affine maps (B, 2, 3) of -1..1 coordinates, bilinear, and where those lie inside."""
    count, side = images.shape[:2]
    images, warps = images.astype(np.float32), warps.astype(np.float32)
    x, y = _coordinates(side)
    u, v = (warps[:, k, 0, None, None] * x + warps[:, k, 1, None, None] * y + warps[:, k, 2, None, None] for k in (0, 1))
    column, row = (((one + 1) / 2 * side - 0.5).clip(0, side - 1) for one in (u, v))
    left, top = (np.minimum(one.astype(int), side - 2) for one in (column, row))
    right_share, lower_share = column - left, row - top
    corner = (top * side + left).reshape(count, side * side)
    flat = images.reshape(count, side * side)
    nw, ne, sw, se = (np.take_along_axis(flat, corner + o, 1).reshape(count, side, side) for o in (0, 1, side, side + 1))
    upper, lower = nw + right_share * (ne - nw), sw + right_share * (se - sw)
    return upper + lower_share * (lower - upper), (abs(u) <= 1) & (abs(v) <= 1)


def _align(fixed: np.ndarray, moving: np.ndarray, warps: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (B,) after alignment, and the maps (B, 2, 3); -1 and no map where the alignment goes astray.

    Gauss-Newton steps: Lucas and Kanade 1981 in the inverse compositional form of Baker and Matthews 2004.
    """
    count, side = fixed.shape[:2]
    x, y = _coordinates(side)
    down, across = np.gradient(fixed * side / 2, axis=(1, 2))
    slopes = np.stack([across * x, across * y, across, down * x, down * y, down], axis=-1)  # (B, side, side, 6)
    identity = np.tile(np.eye(3), (count, 1, 1))
    astray = np.zeros(count, bool)
    for _ in range(steps):
        warped, inside = _warp(moving, warps)
        difference = (warped - fixed) * inside
        slope = (slopes * inside[..., None]).reshape(count, side * side, 6)
        normal = (slope.transpose(0, 2, 1) @ slope).astype(np.float64)
        gradient = (slope.transpose(0, 2, 1) @ difference.reshape(count, side * side, 1)).astype(np.float64)
        # Damped, so that a flat picture has a solution, too.
        normal += 1e-4 * (np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(6)
        change = np.linalg.solve(normal, gradient).reshape(count, 2, 3)
        astray |= abs(change).max(axis=(1, 2)) > MAX_WARP
        step, whole = identity.copy(), identity.copy()
        step[:, :2] += np.where(astray[:, None, None], 0, change)
        whole[:, :2] = warps
        warps = (whole @ np.linalg.inv(step))[:, :2]
        astray |= abs(warps - np.eye(2, 3)).max(axis=(1, 2)) > MAX_WARP
        warps = np.where(astray[:, None, None], np.eye(2, 3), warps)
    warped, inside = _warp(moving, warps)
    return np.where(astray, -1, _correlation(fixed, warped, inside)), warps


def _correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pair by pair over the pixels inside: (B, n, n) -> (B,)."""
    count = inside.sum(axis=(1, 2), keepdims=True)
    a, b = ((one - (one * inside).sum(axis=(1, 2), keepdims=True) / count) * inside for one in (a, b))
    power = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    return (a * b).sum(axis=(1, 2)) / np.sqrt(power + 1e-12)


def group(paths: Sequence[str], patients: Sequence[str], links: Sequence[DuplicatePair]) -> list[str]:
    """For each row the smallest path of its group: what links or one patient ("" = unknown) joins, directly or in a chain."""
    first_of: dict[str, int] = {}
    edges = [(link.first, link.second) for link in links]
    edges += [(first_of.setdefault(patient, row), row) for row, patient in enumerate(patients) if patient]
    ends = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(len(paths), len(paths)))
    numbers = connected_components(graph, directed=False)[1]
    names: dict[int, str] = {}
    for path, number in sorted(zip(paths, numbers.tolist(), strict=True)):
        names.setdefault(number, path)
    return [names[number] for number in numbers.tolist()]


def find_label_conflicts(listed: Sequence[ImageRecord], links: Sequence[DuplicatePair]) -> set[int]:
    """Rows with a copy of another label, or that are near duplicates of such, or of a picture with another label."""
    first = {link.second: link.first for link in links if link.kind == COPY}  # copies speak as one
    labels: dict[int, set[str]] = {}
    for row, one in enumerate(listed):
        labels.setdefault(first.get(row, row), set()).add(one.label)
    disputed = {row for row, names in labels.items() if len(names) > 1}
    for link in links:
        if link.kind == NEAR and len(labels[link.first] | labels[link.second]) > 1:
            disputed |= {link.first, link.second}
    return {row for row in range(len(listed)) if first.get(row, row) in disputed}


def rows_to_drop(
    listed: Sequence[ImageRecord], hashes: Sequence[str], links: Sequence[DuplicatePair], drop_conflicts: bool
) -> dict[int, str]:
    """Rows to leave out, with the reason: all but one of equal copies with one label, and on demand what `conflicting` names.

    Of copies the one with a given split stays, else the first by path.
    """
    left_out = {}
    stays: dict[tuple[str, str], int] = {}
    preference = {"test": 0, "val": 1}
    for row in sorted(range(len(listed)), key=lambda row: (preference.get(listed[row].split, 2), row)):
        kept = stays.setdefault((hashes[row], listed[row].label), row)
        if kept != row:
            left_out[row] = f"copy: of {listed[kept].path}"
    if drop_conflicts:
        for row in find_label_conflicts(listed, links):
            left_out[row] = "conflict: a duplicate has another label"
    return left_out
