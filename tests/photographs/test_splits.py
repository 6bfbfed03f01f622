"""Splits: groups stay whole, class and split fractions are met, given splits are kept, impossible ones are refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.dataset import SPLITS
from stages.photographs.splits import EXCLUDED_LEAK, SplitError, assign_splits


def assign(labels, groups, given_splits=None, val=0.12, test=0.2, seed=0) -> list[str]:
    return assign_splits(labels, groups, given_splits or [""] * len(labels), val, test, seed)


def groups_in_several_splits(groups, splits) -> set:
    splits_of: dict = {}
    for group, name in zip(groups, splits, strict=True):
        splits_of.setdefault(group, set()).add(name)
    return {group for group, names in splits_of.items() if len(names - {EXCLUDED_LEAK}) > 1}


def random_images(groups: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Labels with the challenge's class imbalance, and groups of one to six images."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 1, 2, 3, 6], groups)
    labels = rng.choice(["Type_1", "Type_2", "Type_3"], groups, p=[0.17, 0.53, 0.3])
    return np.repeat(labels, sizes).tolist(), np.repeat(
        [f"g{n}" for n in range(groups)], sizes
    ).tolist()


def test_split_and_class_fractions_are_met():
    labels, groups = random_images(800)
    splits = assign(labels, groups)
    assert not groups_in_several_splits(groups, splits)
    sizes, classes = Counter(splits), Counter(labels)
    assert sizes["test"] / len(labels) == pytest.approx(0.2, abs=0.01)
    assert sizes["val"] / len(labels) == pytest.approx(0.12, abs=0.015)
    for name in SPLITS:
        part = Counter(label for label, split in zip(labels, splits, strict=True) if split == name)
        for label in classes:
            assert part[label] / sizes[name] == pytest.approx(
                classes[label] / len(labels), abs=0.02
            )


def test_split_depends_on_seed_only():
    labels, groups = random_images(200)
    assert assign(labels, groups) == assign(labels, groups)
    assert assign(labels, groups) != assign(labels, groups, seed=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(3, 40), st.integers(0, 10_000), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
def test_small_dataset_is_split_or_refused(groups, seed, val, test):
    labels, names = random_images(groups, seed)
    try:
        splits = assign(labels, names, None, val, test, seed)
    except SplitError as error:
        assert str(error).startswith(("class Type_", "split: "))  # noqa: PT017
    else:
        assert set(splits) == set(SPLITS)
        assert not groups_in_several_splits(names, splits)
        for label in set(labels):
            assert {
                split for other, split in zip(labels, splits, strict=True) if other == label
            } == set(SPLITS)


def test_smallest_dataset_that_can_be_split():
    assert sorted(assign(list("aaabbb"), list("123456"))) == [
        "test",
        "test",
        "train",
        "train",
        "val",
        "val",
    ]


def test_class_with_two_groups_is_refused():
    with pytest.raises(
        SplitError, match=r"class b: expected at least 3 groups of images, .* got 2"
    ):
        assign(list("aaabbbb"), list("1234455"))


def test_other_images_of_given_test_groups_are_excluded():
    labels, groups = random_images(60)
    test_groups = {groups[labels.index(label)] for label in set(labels)} | {"g0"}
    assert groups.count("g0") > 1
    given_splits = ["test" if group in test_groups else "" for group in groups]
    first = groups.index("g0")
    given_splits[first] = ""  # a further image of a test patient
    splits = assign(labels, groups, given_splits)
    assert splits[first] == EXCLUDED_LEAK
    assert [split == "test" for split in splits] == [split == "test" for split in given_splits]
    assert not groups_in_several_splits(groups, splits)
    assert 0.05 < splits.count("val") / len(splits) < 0.25


GROUPS = [str(n) for n in range(18)]


def test_complete_given_splits_are_kept():
    given_splits = ["train", "val", "test"] * 6
    assert assign(["a"] * 9 + ["b"] * 9, GROUPS, given_splits) == given_splits


def test_given_splits_without_test_are_refused():
    with pytest.raises(SplitError, match="expected test among the given splits, got train, val"):
        assign(["a"] * 9 + ["b"] * 9, GROUPS, ["train", "val", "train"] * 6)


def test_given_splits_without_training_images_are_refused():
    with pytest.raises(SplitError, match="expected at least two groups to draw val from, got 0"):
        assign(["a", "b"] * 6, range(12), ["test"] * 12)


def test_class_without_test_images_is_refused():
    with pytest.raises(
        SplitError, match="class b: expected images in train, val and test, got none in test"
    ):
        assign(["a"] * 3 + ["b"] * 15, GROUPS, ["test"] + [""] * 17)
