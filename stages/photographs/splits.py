"""Train, val and test: drawn by group and stratified by class, or given; and how close their pictures still are."""

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from stages.core.dataset import SPLITS, natural_sort_key
from stages.core.errors import InputError

TRAIN, VAL, TEST = SPLITS
LEAK = "leak"  # in place of a split: shares a group with a picture of the given test or validation split
MAX_FOLDS = 10  # a fraction is met to the nearest a/b with b up to this
GREY = 32  # pixels, side of the pictures in the leak check


class SplitError(InputError):
    """The photographs can't be split as asked for; the message names the class."""


def assign_splits(
    labels: Sequence[str], groups: Sequence[str], given: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """One of train, val, test or leak for each row; groups never straddle two splits.

    given: a split, or "" where it is to be drawn; when any is given, test must be among them and isn't drawn.
    Fractions are of all rows, met to the nearest share of up to ten folds.
    Raises SplitError when a class can't be in every split.
    """
    labels, groups, given = np.array(labels, object), np.array(groups, object), np.array(given, object)
    split = np.full(len(labels), TRAIN, object)
    if (given != "").any() and not (given == TEST).any():
        raise SplitError(f"split: expected test among the given splits, got {', '.join(sorted(set(given) - {''}))}")
    for held_out in (VAL, TEST):  # test last, so that it wins
        claimed = np.isin(groups, groups[given == held_out])
        split[claimed] = np.where(given[claimed] == held_out, held_out, LEAK)
    _require_groups(labels[split != LEAK], groups[split != LEAK])
    if not (given == TEST).any():
        _draw(split, TEST, test_fraction, labels, groups, seed)
    if not (given == VAL).any():
        _draw(split, VAL, val_fraction / (1 - test_fraction) if not (given != "").any() else val_fraction, labels, groups, seed)
    counts = Counter(zip(labels, split, strict=True))
    for label in sorted(set(labels), key=natural_sort_key):
        for name in SPLITS:
            if not counts[label, name]:
                raise SplitError(f"class {label}: expected photographs in train, val and test, got none in {name}")
    return split.tolist()


def _require_groups(labels: np.ndarray, groups: np.ndarray) -> None:
    for label in sorted(set(labels), key=natural_sort_key):
        count = len(set(groups[labels == label]))
        if count < len(SPLITS):
            raise SplitError(
                f"class {label}: expected at least {len(SPLITS)} groups of photographs, one for each of train, val and test, "
                f"got {count} (pictures of one patient and near duplicates are one group)"
            )


def _draw(split: np.ndarray, name: str, fraction: float, labels: np.ndarray, groups: np.ndarray, seed: int) -> None:
    """Move about this fraction of the training rows to another split: whole groups, and as even by class as groups allow."""
    # Here, because each worker of preprocess imports this file with its main module and would carry 50 MiB for nothing.
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(split == TRAIN)
    classes, codes = np.unique(labels[rows].astype(str), return_inverse=True)
    wanted = Fraction(fraction).limit_denominator(MAX_FOLDS).denominator
    folds = min(max(wanted, 2), len(set(groups[rows])), np.bincount(codes).max())
    if folds < 2:
        raise SplitError(f"split: expected at least two groups to draw {name} from, got {folds}")
    # The folds are made for cross-validation, each as representative as it can be; of their unions the best is taken, and
    # one that leaves a class out only where there is no choice.
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer pictures than folds: checked by the caller
        members = [part for _, part in splitter.split(rows, codes, groups[rows])]
    counts = np.array([np.bincount(codes[part], minlength=len(classes)) for part in members])  # (folds, classes)
    total = counts.sum(axis=0)

    def unevenness(chosen: tuple[int, ...]) -> tuple[int, float]:
        taken = counts[list(chosen)].sum(axis=0)
        absent = int((taken == 0).sum() + (taken == total).sum())
        return absent, float(np.abs(taken / total - fraction).max())

    count = min(max(round(fraction * folds), 1), folds - 1)
    best = min(itertools.combinations(range(folds), count), key=unevenness)
    split[rows[np.concatenate([members[fold] for fold in best])]] = name


def nearest_in_train(thumbnails: np.ndarray, split: Sequence[str], name: str) -> np.ndarray:
    """For each picture of a split, the largest correlation with a training picture at 32 x 32 grey pixels, -1..1.

    A measure of its own, not the one that the groups were made with, so that it can contradict them.
    """
    split = np.array(split)
    small = [Image.fromarray(one).resize((GREY, GREY), Image.Resampling.BOX) for one in thumbnails]
    vectors = np.stack([np.asarray(one, np.float32).ravel() for one in small])
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    train, rows = vectors[split == TRAIN], np.flatnonzero(split == name)
    return np.concatenate([(vectors[part] @ train.T).max(axis=1) for part in np.array_split(rows, len(rows) // 512 + 1)])
