"""Whether the split leaks: what resembles what, compared with what chance alone gives.

Groups were made by another measure, the agreement of fine detail, so that this one, the correlation
of coarse structure, can contradict them. Images of tissue may correlate by nature, so that a number
of similar images says nothing by itself.

- *Look-alikes* are held-out images that correlate with a training image by `ALIKE`. Random splits
  of the same groups show how many of them there are. More mean that the given split isn't one of
  these, for example that copies were put into test. This says nothing of groups that are
  incomplete, because random splits divide these, too.
- *Outliers* are images that are closer to one image of another group than the next ones let
  expect. That shows when groups are incomplete, for example for want of patients.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtr

from stages.core.dataset import SPLITS
from stages.photographs.nearest import (
    downscale,
    largest_similarities,
    similar_to_chosen,
    unit_vectors,
)
from stages.photographs.parallel import ParallelMap
from stages.photographs.splits import TEST, TRAIN, VAL, random_group_splits

SIDE = 32  # pixels, of the gray images that are compared
ALIKE = 0.93  # correlation from which two images are called look-alikes
GROUP_SPLITS, IMAGE_SPLITS = 200, 20  # random splits by group, and by image for comparison
CONFIDENCE = 0.99  # of what chance alone gives
OUTLIER_IMAGES = 5000  # at most, evenly spread, are looked at
# Nearest images of other groups: the first ones may be of the same patient, from those after them
# up to the last the tail of unrelated ones is extrapolated.
RELATED, NEIGHBORS = 8, 60
OUTLIER_P = 0.01  # p value below which an image is an outlier
MOST = 0.99999  # correlation above which differences are rounding


def leakage_check(
    thumbnails: np.ndarray,
    labels: Sequence[str],
    groups: Sequence[str],
    splits: Mapping[int, str],
    seed: int,
    map_: ParallelMap,
    scratch: Path,
) -> dict[str, Any]:
    """Look-alikes in val and test, outliers among all images, and what chance gives of both.

    What chance does not explain is in ``signs``, in sentences.

    Args:
        thumbnails: uint8 (N, 64, 64).
        labels: (N,).
        groups: (N,).
        splits: row -> split, for the images of the dataset.
        seed: of the random splits.
        map_: runs the comparison.
        scratch: folder for temporary files, which all processes see.
    """
    rows, names = np.array(list(splits), dtype=int), list(splits.values())
    split = np.array(names)
    label, group = [labels[row] for row in rows], [groups[row] for row in rows]
    by_group = random_group_splits(label, group, names, GROUP_SPLITS, seed)
    each_image = [str(row) for row in rows]
    by_image = random_group_splits(label, each_image, names, IMAGE_SPLITS, seed)
    actual = np.array([SPLITS.index(name) for name in split], np.int8)[:, None]
    assigned = np.concatenate([actual, by_group, by_image], axis=1)
    check: dict[str, Any] = {"alike_from": ALIKE, "random_splits": GROUP_SPLITS}
    _, group_number = np.unique(group, return_inverse=True)
    some = np.arange(0, len(rows), math.ceil(len(rows) / OUTLIER_IMAGES))
    with unit_vectors(thumbnails, rows, partial(downscale, side=SIDE), scratch) as vectors:
        alike = similar_to_chosen(vectors, assigned == SPLITS.index(TRAIN), ALIKE, map_)
        nearest = largest_similarities(vectors, some, group_number, NEIGHBORS, map_)
    for name in (VAL, TEST):
        in_split = assigned == SPLITS.index(name)
        shares = (alike & in_split).sum(axis=0) / np.maximum(in_split.sum(axis=0), 1)
        check[name] = {
            "alike_share": float(shares[0]),
            "alike_by_group": _spread(shares[1 : 1 + GROUP_SPLITS]),
            "alike_by_image": float(shares[1 + GROUP_SPLITS :].mean()),
        }
    check["outliers"] = {
        "images": len(some),
        "share": float((outlier_p_values(nearest) < OUTLIER_P).mean()),
        "high": _highest_by_chance(len(some)),
    }
    return check | {"signs": _signs(check[TEST], check["outliers"])}


def _signs(found: Mapping[str, Any], outliers: Mapping[str, Any]) -> list[str]:
    """What chance does not explain in the test split and in the groups, in sentences."""
    signs = []
    if found["alike_share"] > found["alike_by_group"]["high"]:
        signs.append(
            f"{found['alike_share']:.1%} of the test images are look-alikes of a training image, "
            f"more than the {found['alike_by_group']['low']:.1%} to "
            f"{found['alike_by_group']['high']:.1%} of random splits by group: does the given "
            "test split contain altered copies of training images?"
        )
    if outliers["share"] > outliers["high"]:
        signs.append(
            f"{outliers['share']:.1%} of the images are unusually close to one of another group, "
            f"by chance up to {outliers['high']:.1%}: is one patient in several groups "
            "(data.groups, data.group_pattern or the column patient of data.table names patients)?"
        )
    return signs


def _spread(shares: np.ndarray) -> dict[str, float]:
    """Mean and interval of random splits."""
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": float(shares.mean()), "low": float(low), "high": float(high)}


def _highest_by_chance(count: int) -> float:
    """The upper end of the interval of the share of outliers, where there is no leakage."""
    probability = bdtr(np.arange(count + 1), count, OUTLIER_P)  # of so many or fewer
    return float(np.argmax(probability >= (1 + CONFIDENCE) / 2) / count)


def outlier_p_values(similarities: np.ndarray) -> np.ndarray:
    """Whether the nearest of several images stands out from the others: p values (M,).

    The Fisher transforms of the largest correlations are taken for the tail of an exponential
    distribution: then the j-th gap between them, times j, is exponential with the same mean for
    every j (Renyi 1953, doi:10.1007/BF02127580). The gaps after the first RELATED give the mean,
    and the largest of RELATED values above that limit has a known distribution. Real tails are
    lighter, so that fewer p values are small than expected.

    Args:
        similarities: (M, K) largest correlations, in descending order, -inf where there are no
            more. The p value is 1 where there are fewer than NEIGHBORS.
    """
    p_values = np.ones(len(similarities))
    enough = np.isfinite(similarities).sum(axis=1) >= NEIGHBORS
    if enough.any():
        transformed = np.arctanh(np.clip(similarities[enough].astype(np.float64), -MOST, MOST))
        gaps = transformed[:, :-1] - transformed[:, 1:]
        scale = (gaps * np.arange(1, similarities.shape[1]))[:, RELATED:].mean(axis=1)
        height = (transformed[:, 0] - transformed[:, RELATED]) / np.maximum(scale, 1e-9)
        p_values[enough] = 1 - (1 - np.exp(-height)) ** RELATED
    return p_values
