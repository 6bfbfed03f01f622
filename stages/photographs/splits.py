"""Train, val and test: a random split by group, stratified by class, or a given one."""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from stages.core.dataset import SPLITS, natural_sort_key
from stages.core.errors import InputError

TRAIN, VAL, TEST = SPLITS
EXCLUDED_LEAK = "leak"  # no split: shares a group with an image of a given test or val split
MAX_FOLDS = 10  # a fraction is met to the nearest a/b with b up to this, a smaller one to 1/b


class SplitError(InputError):
    """The images can't be split as asked for; the message names the class."""


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> list[str]:
    """One of train, val, test or leak for each row; no group is in two splits.

    Fractions are of all rows, or where the test split is given of the others; they are met to the
    nearest number of up to ten folds, or one of more.

    Args:
        labels: (N,).
        groups: (N,).
        given: (N,) a split or "". When any is given, test must be among them and isn't drawn;
            without val, that is drawn from all others, also from those given as train.
        val_fraction: of validation images.
        test_fraction: of test images.
        seed: of the random split.

    Raises:
        SplitError: when a class can't be in every split.
    """
    if any(given) and TEST not in given:
        got = ", ".join(sorted(set(given) - {""}))
        raise SplitError(f"split: expected test among the given splits, got {got}")
    label, group, preset = (np.array(values, object) for values in (labels, groups, given))
    split = np.full(len(label), TRAIN, object)
    for held_out in (VAL, TEST):  # test last, so that it wins
        claimed = np.isin(group, group[preset == held_out])
        split[claimed] = np.where(preset[claimed] == held_out, held_out, EXCLUDED_LEAK)
    _require_groups(label[split != EXCLUDED_LEAK], group[split != EXCLUDED_LEAK])
    if not any(given):
        _draw(split, TEST, test_fraction, label, group, seed)
        _draw(split, VAL, val_fraction / (1 - test_fraction), label, group, seed)
    elif VAL not in given:
        _draw(split, VAL, val_fraction, label, group, seed)
    _require_every_class(label, split)
    return split.tolist()


def random_group_splits(
    labels: Sequence[str], groups: Sequence[str], splits: Sequence[str], count: int, seed: int
) -> np.ndarray:
    """Random splits in whole groups, with about as many images of each class as a given split.

    In each class the groups are put into random order; the first ones, up to the number of test
    images, are test, those up to the number of validation images val.

    Args:
        labels: (N,).
        groups: (N,); the class of a group is that of its first image.
        splits: (N,) the split whose sizes are met, to within one group for each class.
        count: S random splits.
        seed: of the random numbers.

    Returns:
        int8 (N, S), an index into SPLITS.
    """
    _, first, group = np.unique(np.array(groups), return_index=True, return_inverse=True)
    _, label = np.unique(np.array(labels)[first], return_inverse=True)  # of each group
    size, image_label = np.bincount(group), label[group]
    class_size = np.bincount(image_label)
    class_start = np.cumsum(class_size) - class_size
    split = np.array(splits)
    held_out = [
        np.bincount(image_label[split == name], minlength=len(class_size)) for name in (TEST, VAL)
    ]
    ends = np.cumsum(held_out, axis=0)  # of test and of val, in the order of each class
    codes = np.array([SPLITS.index(name) for name in (TEST, VAL, TRAIN)], np.int8)
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(group), count), np.int8)
    for number in range(count):
        order = rng.permutation(len(size))
        order = order[np.argsort(label[order], kind="stable")]
        start = np.cumsum(size[order]) - size[order] - class_start[label[order]]
        code = np.empty(len(size), np.int8)
        code[order] = codes[(start >= ends[:, label[order]]).sum(axis=0)]
        drawn[:, number] = code[group]
    return drawn


def _require_groups(labels: np.ndarray, groups: np.ndarray) -> None:
    for label in sorted(set(labels), key=natural_sort_key):
        count = len(set(groups[labels == label]))
        if count < len(SPLITS):
            raise SplitError(
                f"class {label}: expected at least {len(SPLITS)} groups of images, one for each of "
                f"train, val and test, got {count} "
                "(images of one patient or scene, of which plots/duplicates.png shows pairs, are "
                "one group; a higher data.duplicate_similarity joins fewer)"
            )


def _require_every_class(labels: np.ndarray, splits: np.ndarray) -> None:
    counts = Counter(zip(labels, splits, strict=True))
    for label in sorted(set(labels), key=natural_sort_key):
        for name in SPLITS:
            if not counts[label, name]:
                expected = "expected images in train, val and test"
                raise SplitError(f"class {label}: {expected}, got none in {name}")


def _draw(
    split: np.ndarray, name: str, fraction: float, labels: np.ndarray, groups: np.ndarray, seed: int
) -> None:
    """Move about this fraction of the training rows to another split, in whole groups.

    Folds of a cross-validation are made, each as representative as it can be. Of the unions of
    folds that have about the right size, the one with the least class imbalance is taken.
    """
    rows = np.flatnonzero(split == TRAIN)
    classes, codes = np.unique(labels[rows].astype(str), return_inverse=True)
    most = max(MAX_FOLDS, math.ceil(1 / fraction))
    wanted = Fraction(fraction).limit_denominator(most).denominator
    count = min(wanted, len(set(groups[rows])), np.bincount(codes, minlength=1).max())
    if count < 2:
        raise SplitError(f"split: expected at least two groups to draw {name} from, got {count}")
    folds = _make_folds(codes, groups[rows], count, seed)
    sizes = np.array([np.bincount(codes[fold], minlength=len(classes)) for fold in folds])
    number = min(max(round(fraction * count), 1), count - 1)
    unions = itertools.combinations(range(count), number)
    best = min(unions, key=lambda union: _class_imbalance(sizes, union, fraction))
    split[rows[np.concatenate([folds[index] for index in best])]] = name


def _class_imbalance(
    sizes: np.ndarray, union: tuple[int, ...], fraction: float
) -> tuple[int, float]:
    """Classes that a union of folds has none or all of; the largest deviation of a class.

    sizes: (folds, classes).
    """
    taken, total = sizes[list(union)].sum(axis=0), sizes.sum(axis=0)
    absent = int((taken == 0).sum() + (taken == total).sum())
    return absent, float(np.abs(taken / total - fraction).max())


def _make_folds(codes: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold."""
    # Imported here, because each worker of preprocess imports this file and would carry 50 MiB.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Of classes with fewer images than folds, which _require_every_class checks.
        warnings.simplefilter("ignore", UserWarning)
        return [fold for _, fold in splitter.split(codes, codes, groups)]
