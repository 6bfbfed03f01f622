"""How close the held-out images are to training images: a check of the split by another measure than the one that made it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stages.photographs.splits import TEST, TRAIN, VAL

SIDE = 32  # pixels, of the gray images that are compared
THRESHOLD = 0.93  # correlation from which two images are called near-duplicates


def max_train_similarity(thumbnails: np.ndarray, split: Sequence[str], name: str) -> np.ndarray:
    """For each image of a split, the largest correlation with a training image at 32 x 32 gray pixels, -1..1.

    Not the measure that the groups were made with, so that it can contradict them.
    """
    names = np.array(split)
    small = [Image.fromarray(thumbnail).resize((SIDE, SIDE), Image.Resampling.BOX) for thumbnail in thumbnails]
    vectors = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    train, rows = vectors[names == TRAIN], np.flatnonzero(names == name)
    return np.concatenate([(vectors[part] @ train.T).max(axis=1) for part in np.array_split(rows, len(rows) // 512 + 1)])


def leakage_check(thumbnails: np.ndarray, split: list[str], seed: int) -> dict[str, Any]:
    """Similarity to the nearest training image, compared with an image-level random split of the same sizes."""
    shuffled = np.random.default_rng(seed).permutation(np.array(split)).tolist()
    check: dict[str, Any] = {"alike_from": THRESHOLD}
    for name in (VAL, TEST):
        for title, assigned in ((name, split), (f"{name}_if_drawn_by_picture", shuffled)):
            nearest = max_train_similarity(thumbnails, assigned, name)
            check[title] = {
                "median": round(float(np.median(nearest)), 4),
                "highest": round(float(nearest.max()), 4),
                "alike_share": float((nearest >= THRESHOLD).mean()),
            }
    return check
