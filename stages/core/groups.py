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
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.core.decoding import Map
from stages.core.listing import Listed

COARSE = 24  # pixels, side of the pictures that propose neighbours
NEIGHBOURS = 4  # proposals per picture; chains of duplicates need only one right one each
PROPOSE = 0.6  # coarse correlation from which a neighbour is proposed: a crop of 6 % a side keeps 0.75
BLOCK = 512  # rows of the correlation matrix that are in memory at a time
PYRAMID = ((16, 5), (32, 4), (64, 3))  # (side in pixels, steps) of the alignment, coarse to fine
MAX_WARP = 0.4  # a larger displacement, in half widths, is a wrong alignment, not a slight crop
NOISE = 2.5  # grey levels: weaker detail than this isn't amplified
COPY, NEAR = "copy", "near"


@dataclass(frozen=True)
class Link:
    """Two rows that show the same. kind: copy (equal bytes) or near; similarity: agreement of fine detail, 1 for copies."""

    first: int
    second: int
    kind: str
    similarity: float


def find_duplicates(hashes: Sequence[str], thumbnails: np.ndarray, similarity: float, map_: Map) -> list[Link]:
    """All links, in order of rows. hashes: of the content; thumbnails: uint8 (N, 64, 64).

    Copies are linked to the first of them; only first ones are compared with others.
    """
    firsts: dict[str, int] = {}
    links = [Link(firsts[h], i, COPY, 1.0) for i, h in enumerate(hashes) if firsts.setdefault(h, i) != i]
    rows = np.array(sorted(firsts.values()))
    pairs = [(rows[a], rows[b]) for a, b in propose_pairs(thumbnails[rows])]
    found = map_(partial(fine_similarity, least=similarity), [(thumbnails[a], thumbnails[b]) for a, b in pairs])
    links += [Link(int(a), int(b), NEAR, value) for (a, b), value in zip(pairs, found, strict=True) if value >= similarity]
    return sorted(links, key=lambda link: (link.first, link.second))


def propose_pairs(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Each picture with its nearest neighbours in coarse structure, as sorted pairs of rows."""
    coarse = np.stack([_detail(_reduce(thumbnail, COARSE), 1, 4).ravel() for thumbnail in thumbnails])
    coarse -= coarse.mean(axis=1, keepdims=True)
    coarse /= np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(coarse), BLOCK):
        block = coarse[start : start + BLOCK] @ coarse.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -1
        nearest = np.argsort(-block, axis=1, kind="stable")[:, :NEIGHBOURS]
        for row, others in enumerate(nearest, start):
            pairs |= {(min(row, o), max(row, o)) for o in others.tolist() if block[row - start, o] >= PROPOSE}
    return sorted(pairs)


def fine_similarity(pair: tuple[np.ndarray, np.ndarray], least: float = 0.0) -> float:
    """Correlation of the fine detail of two thumbnails after alignment, -1..1.

    The alignment stops, and the value of that coarser level is returned, where even that lies below `least`: finer detail
    agrees less, not more. Symmetric only approximately: the second picture is warped onto the first.
    """
    first, second = pair
    warp = np.eye(2, 3)
    for side, steps in PYRAMID:
        agreement, warp = _align(_detail(_reduce(first, side), 1, 4), _detail(_reduce(second, side), 1, 4), warp, steps)
        if agreement < least:
            return min(agreement, np.nextafter(least, -1))
    warped, inside = _warp(second.astype(np.float64), warp)
    return _correlation(_detail(first, 1, 2)[inside], _detail(warped, 1, 2)[inside])


def _reduce(thumbnail: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(thumbnail).resize((side, side), Image.Resampling.BOX))


def _detail(grey: np.ndarray, finest: float, coarsest: float) -> np.ndarray:
    """Structure between two scales (Gaussian widths in pixels), its contrast evened out against exposure and shading."""
    grey = grey.astype(np.float64)
    band = gaussian_filter(grey, finest) - gaussian_filter(grey, coarsest)
    return band / np.sqrt(gaussian_filter(band**2, coarsest) + NOISE**2)


def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, -1..1."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.meshgrid(axis, axis)


def _warp(image: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image seen through an affine map (2, 3) of -1..1 coordinates, and where that lies inside it."""
    side = len(image)
    x, y = _coordinates(side)
    u = warp[0, 0] * x + warp[0, 1] * y + warp[0, 2]
    v = warp[1, 0] * x + warp[1, 1] * y + warp[1, 2]
    rows, columns = ((v + 1) / 2 * side - 0.5), ((u + 1) / 2 * side - 0.5)
    return map_coordinates(image, [rows, columns], order=1, mode="nearest"), (abs(u) <= 1) & (abs(v) <= 1)


def _align(fixed: np.ndarray, moving: np.ndarray, warp: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
    """Correlation after alignment, and the warp. Gauss-Newton steps (Lucas and Kanade 1981, inverse compositional form)."""
    side = len(fixed)
    x, y = _coordinates(side)
    down, across = np.gradient(fixed * side / 2)
    slopes = np.stack([across * x, across * y, across, down * x, down * y, down], axis=-1)  # (side, side, 6)
    for _ in range(steps):
        warped, inside = _warp(moving, warp)
        slope, difference = slopes[inside], warped[inside] - fixed[inside]
        normal = slope.T @ slope
        damped = normal + 1e-4 * (np.trace(normal) + 1e-9) * np.eye(6)
        change = np.linalg.solve(damped, slope.T @ (difference - difference.mean()))
        step = np.eye(3)
        step[:2] += change.reshape(2, 3)
        warp = (np.vstack([warp, [0, 0, 1]]) @ np.linalg.pinv(step))[:2]
        if abs(warp - np.eye(2, 3)).max() > MAX_WARP:
            return -1.0, np.eye(2, 3)
    warped, inside = _warp(moving, warp)
    return _correlation(fixed[inside], warped[inside]), warp


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-12))


def group(paths: Sequence[str], patients: Sequence[str], links: Sequence[Link]) -> list[str]:
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


def conflicting(listed: Sequence[Listed], links: Sequence[Link]) -> set[int]:
    """Rows with a copy or near duplicate of another label."""
    pairs = [(link.first, link.second) for link in links if listed[link.first].label != listed[link.second].label]
    return {row for pair in pairs for row in pair}


def surplus(listed: Sequence[Listed], hashes: Sequence[str], links: Sequence[Link], drop_conflicts: bool) -> dict[int, str]:
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
        for row in conflicting(listed, links):
            left_out[row] = "conflict: a duplicate has another label"
    return left_out
