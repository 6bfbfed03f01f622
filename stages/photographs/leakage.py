"""How close held-out images are to training images: a check of the split by another measure."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.photographs.nearest import downscale, largest_similarities, unit_vectors
from stages.photographs.parallel import ParallelMap
from stages.photographs.splits import TEST, TRAIN, VAL

SIDE = 32  # pixels, of the gray images that are compared
THRESHOLD = 0.93  # correlation from which two images are called look-alikes


def leakage_check(
    thumbnails: np.ndarray, splits: Mapping[int, str], seed: int, map_: ParallelMap, scratch: Path
) -> dict[str, Any]:
    """Similarity of val and test images to their nearest training images.

    The same for an image-level random split of the same sizes, as a comparison. Groups were made
    by another measure, so that this one can contradict them.

    Args:
        thumbnails: uint8 (N, 64, 64).
        splits: row -> split, for the images of the dataset.
        seed: of the random split.
        map_: runs the comparison.
        scratch: folder for a temporary file, which all processes see.
    """
    rows, split = np.array(list(splits), dtype=int), np.array(list(splits.values()))
    shuffled = np.random.default_rng(seed).permutation(split)
    check: dict[str, Any] = {"alike_from": THRESHOLD}
    with unit_vectors(thumbnails, rows, partial(downscale, side=SIDE), scratch) as vectors:
        for name in (VAL, TEST):
            for title, assigned in ((name, split), (f"{name}_if_drawn_by_picture", shuffled)):
                held_out, train = (
                    np.flatnonzero(assigned == name),
                    np.flatnonzero(assigned == TRAIN),
                )
                nearest = largest_similarities(vectors, held_out, train, map_)
                check[title] = {
                    "median": round(float(np.median(nearest)), 4),
                    "highest": round(float(nearest.max()), 4),
                    "alike_share": float((nearest >= THRESHOLD).mean()),
                }
    return check
