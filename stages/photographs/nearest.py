"""Exact nearest neighbors by correlation, in blocks of bounded memory, from vectors on disk.

The blocks depend on the number of vectors alone and each is computed by one thread, so that any
number of processes gives the same result. Exact search is quadratic, yet a matrix product: 100,000
vectors take minutes, a million take hours of all cores.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.files import naming_file
from stages.photographs.parallel import ParallelMap

ROWS = 512  # most vectors of a block, each of which is compared with all others
COLUMNS = 4096  # vectors at a time that are written, or compared where only a maximum is kept
BLOCK_BYTES = 2**26  # of similarities that a process holds at a time
VECTORS, CHOICES = "vectors.part", "choices.part"  # names of temporary files


def downscale(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Means over boxes: uint8 (B, n, n) -> (B, side, side)."""
    box = Image.Resampling.BOX
    images = [Image.fromarray(image).resize((side, side), box) for image in thumbnails]
    return np.stack([np.asarray(image) for image in images])


@contextmanager
def unit_vectors(
    images: np.ndarray, rows: np.ndarray, feature: Callable[[np.ndarray], np.ndarray], scratch: Path
) -> Iterator[Path]:
    """A temporary file with a vector for each image, of mean 0 and length 1.

    Their products are correlations.

    Args:
        images: (N, ...).
        rows: (M,) of the images that get a vector, in this order.
        feature: (B, ...) -> (B, ...) of numbers.
        scratch: folder of the file, which all processes see.
    """
    file = scratch / VECTORS
    try:
        with naming_file(file), file.open("wb") as stream:
            for start in range(0, len(rows), COLUMNS):
                vectors = feature(images[rows[start : start + COLUMNS]])
                vectors = vectors.reshape(len(vectors), -1).astype(np.float32, order="C")
                vectors -= vectors.mean(axis=1, keepdims=True)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
                if start == 0:
                    header = np.lib.format.header_data_from_array_1_0(vectors)
                    header["shape"] = (len(rows), vectors.shape[1])
                    np.lib.format.write_array_header_1_0(stream, header)
                stream.write(vectors.tobytes())
        yield file
    finally:
        file.unlink(missing_ok=True)


def _blocks(rows: np.ndarray, columns: int) -> list[np.ndarray]:
    """``rows`` in blocks whose similarities to so many columns fit into BLOCK_BYTES."""
    height = max(1, min(ROWS, BLOCK_BYTES // (4 * max(columns, 1))))
    return [rows[start : start + height] for start in range(0, len(rows), height)]


def nearest_pairs(
    file: Path, count: int, neighbors: int, least: float, map_: ParallelMap
) -> np.ndarray:
    """Each vector with its most similar ones; of equally similar ones the first.

    Args:
        file: of `unit_vectors`.
        count: N vectors in it.
        neighbors: of each vector at most.
        least: similarity.
        map_: runs the blocks.

    Returns:
        int64 (M, 2), each pair once, sorted, the smaller row first.
    """
    search = partial(_nearest_in_block, file=file, neighbors=neighbors, least=least)
    pairs = list(map_(search, _blocks(np.arange(count), count)))
    joined = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    return np.unique(np.sort(joined, axis=1), axis=0)


def _nearest_in_block(rows: np.ndarray, file: Path, neighbors: int, least: float) -> np.ndarray:
    """(row, neighbor) int64 (M, 2) for these rows."""
    vectors = np.load(file, mmap_mode="r")
    similarity = vectors[rows] @ vectors.T  # (B, N)
    similarity[np.arange(len(rows)), rows] = -np.inf
    near = similarity >= least
    for crowded in np.flatnonzero(near.sum(axis=1) > neighbors):
        others = np.flatnonzero(near[crowded])
        values = similarity[crowded, others]
        # By value: which of equal ones np.argpartition would take depends on the processor.
        limit = np.partition(values, -neighbors)[-neighbors]
        above, equal = others[values > limit], others[values == limit]
        near[crowded] = False
        near[crowded, np.concatenate([above, equal[: neighbors - len(above)]])] = True
    row, other = np.nonzero(near)
    return np.stack([rows[row], other], axis=1)


def largest_similarities(
    file: Path, rows: np.ndarray, groups: np.ndarray, most: int, map_: ParallelMap
) -> np.ndarray:
    """The largest similarities of each of ``rows`` to vectors of other groups.

    Args:
        file: of `unit_vectors`, with N vectors.
        rows: (M,).
        groups: int (N,).
        most: number of similarities for each.
        map_: runs the blocks.

    Returns:
        float32 (M, K), K = min(``most``, N), largest first; -inf where there are no more.
    """
    search = partial(_largest_in_block, file=file, groups=groups, most=most)
    return np.concatenate(list(map_(search, _blocks(rows, COLUMNS))))


def _largest_in_block(rows: np.ndarray, file: Path, groups: np.ndarray, most: int) -> np.ndarray:
    vectors = np.load(file, mmap_mode="r")
    block, largest = vectors[rows], np.empty((len(rows), 0), np.float32)
    for start in range(0, len(vectors), COLUMNS):
        similarity = block @ vectors[start : start + COLUMNS].T
        similarity[groups[rows][:, None] == groups[start : start + COLUMNS]] = -np.inf
        largest = np.concatenate([largest, similarity], axis=1)
        if largest.shape[1] > most:
            largest = -np.partition(-largest, most - 1, axis=1)[:, :most]
    return -np.sort(-largest, axis=1)


def similar_to_chosen(
    file: Path, chosen: np.ndarray, least: float, map_: ParallelMap
) -> np.ndarray:
    """Which vectors are this similar to another one that is chosen, for many choices at once.

    Args:
        file: of `unit_vectors`, with N vectors; a temporary file is written next to it.
        chosen: bool (N, S), one column for each choice.
        least: similarity.
        map_: runs the blocks.

    Returns:
        bool (N, S).
    """
    choices = file.with_name(CHOICES)
    try:
        with naming_file(choices), choices.open("wb") as stream:
            np.save(stream, chosen)
        search = partial(_similar_in_block, file=file, choices=choices, least=least)
        return np.concatenate(list(map_(search, _blocks(np.arange(len(chosen)), COLUMNS))))
    finally:
        choices.unlink(missing_ok=True)


def _similar_in_block(rows: np.ndarray, file: Path, choices: Path, least: float) -> np.ndarray:
    """Whether each of ``rows`` is, for each choice: bool (B, S)."""
    vectors, chosen = np.load(file, mmap_mode="r"), np.load(choices, mmap_mode="r")
    block, found = vectors[rows], np.zeros((len(rows), chosen.shape[1]), bool)
    for start in range(0, len(vectors), COLUMNS):
        columns = np.arange(start, min(start + COLUMNS, len(vectors)))
        similar = block @ vectors[columns].T >= least
        similar &= rows[:, None] != columns
        # A product of floats: unlike sparse matrices as fast where most pairs are similar.
        found |= similar.astype(np.float32) @ chosen[columns].astype(np.float32) > 0
    return found
