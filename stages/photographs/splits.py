"""Train, val and test: a random split by group, stratified by class, or a given one."""

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from stages.core.dataset import SPLITS, natural_sort_key
from stages.core.errors import InputError

TRAIN, VAL, TEST = SPLITS
EXCLUDED_LEAK = "leak"  # in place of a split: shares a group with an image of the given test or validation split
MAX_FOLDS = 10  # a fraction is met to the nearest a/b with b up to this


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
    """One of train, val, test or leak for each row; groups never straddle two splits.

    Fractions are of all rows, or where the test split is given of the others; met to the nearest one of up to ten folds.

    Args:
        labels: (N,).
        groups: (N,).
        given: (N,) a split or "". When any is given, test must be among them and isn't drawn; without val that is drawn from
            all others, also those given as train.
        val_fraction: of validation images.
        test_fraction: of test images.
        seed: of the random split.

    Raises:
        SplitError: when a class can't be in every split.
    """
    label, group, preset = (
        np.array(labels, object),
        np.array(groups, object),
        np.array(given, object),
    )
    split = np.full(len(label), TRAIN, object)
    random, test_given, val_given = not any(given), TEST in given, VAL in given
    if not random and not test_given:
        raise SplitError(
            f"split: expected test among the given splits, got {', '.join(sorted(set(given) - {''}))}"
        )
    for held_out in (VAL, TEST):  # test last, so that it wins
        claimed = np.isin(group, group[preset == held_out])
        split[claimed] = np.where(preset[claimed] == held_out, held_out, EXCLUDED_LEAK)
    _require_groups(label[split != EXCLUDED_LEAK], group[split != EXCLUDED_LEAK])
    if not test_given:
        _assign_held_out(split, TEST, test_fraction, label, group, seed)
    if not val_given:
        fraction = val_fraction / (1 - test_fraction) if random else val_fraction
        _assign_held_out(split, VAL, fraction, label, group, seed)
    counts = Counter(zip(labels, split, strict=True))
    for name in sorted(set(labels), key=natural_sort_key):
        for part in SPLITS:
            if not counts[name, part]:
                raise SplitError(
                    f"class {name}: expected images in train, val and test, got none in {part}"
                )
    return split.tolist()


def _require_groups(labels: np.ndarray, groups: np.ndarray) -> None:
    for label in sorted(set(labels), key=natural_sort_key):
        count = len(set(groups[labels == label]))
        if count < len(SPLITS):
            raise SplitError(
                f"class {label}: expected at least {len(SPLITS)} groups of images, one for each of train, val and test, "
                f"got {count} (images of one patient and near-duplicates are one group)"
            )


def _assign_held_out(
    split: np.ndarray, name: str, fraction: float, labels: np.ndarray, groups: np.ndarray, seed: int
) -> None:
    """Move about this fraction of the training rows to another split: whole groups, and as even by class as groups allow."""
    # Here, because each worker of preprocess imports this file with its main module and would carry 50 MiB for nothing.
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(split == TRAIN)
    classes, codes = np.unique(labels[rows].astype(str), return_inverse=True)
    wanted = Fraction(fraction).limit_denominator(MAX_FOLDS).denominator
    folds = min(max(wanted, 2), len(set(groups[rows])), np.bincount(codes, minlength=1).max())
    if folds < 2:
        raise SplitError(f"split: expected at least two groups to draw {name} from, got {folds}")
    # The folds are made for cross-validation, each as representative as it can be; of their unions the best is taken, and
    # one that leaves a class out only where there is no choice.
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # a class with fewer images than folds: checked by the caller
        members = [part for _, part in splitter.split(rows, codes, groups[rows])]
    counts = np.array(
        [np.bincount(codes[part], minlength=len(classes)) for part in members]
    )  # (folds, classes)
    total = counts.sum(axis=0)

    def class_imbalance(chosen: tuple[int, ...]) -> tuple[int, float]:
        taken = counts[list(chosen)].sum(axis=0)
        absent = int((taken == 0).sum() + (taken == total).sum())
        return absent, float(np.abs(taken / total - fraction).max())

    count = min(max(round(fraction * folds), 1), folds - 1)
    best = min(itertools.combinations(range(folds), count), key=class_imbalance)
    split[rows[np.concatenate([members[fold] for fold in best])]] = name
