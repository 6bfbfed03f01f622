"""How close the held-out images are to training images: a check of the split by another measure than the one that made it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.photographs.nearest import downscale, largest_similarities, unit_vectors
from stages.photographs.parallel import ParallelMap
from stages.photographs.splits import TEST, TRAIN, VAL

SIDE = 32  # pixels, of the gray images that are compared
THRESHOLD = 0.93  # correlation from which two images are called near-duplicates


def max_train_similarity(
    vectors: Path, split: Sequence[str], name: str, map_: ParallelMap
) -> np.ndarray:
    """For each image of a split, the largest correlation with a training image: float32, -1..1.

    Args:
        vectors: file of `unit_vectors`, one for each image.
        split: the split of each image.
        name: of the split whose images are compared.
        map_: runs the comparison.
    """
    names = np.array(split)
    return largest_similarities(
        vectors, np.flatnonzero(names == name), np.flatnonzero(names == TRAIN), map_
    )


def leakage_check(
    thumbnails: np.ndarray, splits: Mapping[int, str], seed: int, map_: ParallelMap, scratch: Path
) -> dict[str, Any]:
    """Similarity to the nearest training image, compared with an image-level random split of the same sizes.

    At 32 x 32 gray pixels: not the measure that the groups were made with, so that it can contradict them.

    Args:
        thumbnails: uint8 (N, 64, 64).
        splits: row -> split, for the images of the dataset.
        seed: of the random split.
        map_: runs the comparison.
        scratch: folder for a temporary file, which all processes see.
    """
    rows, split = np.array(list(splits), dtype=int), list(splits.values())
    shuffled = np.random.default_rng(seed).permutation(np.array(split)).tolist()
    check: dict[str, Any] = {"alike_from": THRESHOLD}
    with unit_vectors(thumbnails, rows, partial(downscale, side=SIDE), scratch) as vectors:
        for name in (VAL, TEST):
            for title, assigned in ((name, split), (f"{name}_if_drawn_by_picture", shuffled)):
                nearest = max_train_similarity(vectors, assigned, name, map_)
                check[title] = {
                    "median": round(float(np.median(nearest)), 4),
                    "highest": round(float(nearest.max()), 4),
                    "alike_share": float((nearest >= THRESHOLD).mean()),
                }
    return check
