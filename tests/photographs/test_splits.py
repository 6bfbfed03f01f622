"""Splits: groups stay whole, fractions are met, given splits are kept, others are refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.dataset import SPLITS
from stages.photographs.splits import (
    EXCLUDED_LEAK,
    SplitError,
    assign_splits,
    random_group_splits,
)


def assign(labels, groups, given_splits=None, val=0.12, test=0.2, seed=0) -> list[str]:
    return assign_splits(labels, groups, given_splits or [""] * len(labels), val, test, seed)


def groups_are_whole(groups, splits) -> bool:
    pairs = {(g, s) for g, s in zip(groups, splits, strict=True) if s != EXCLUDED_LEAK}
    return len(pairs) == len({group for group, _ in pairs})


def random_images(groups: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Labels with the challenge's class imbalance, and groups of one to six images."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 1, 2, 3, 6], groups)
    labels = rng.choice(["Type_1", "Type_2", "Type_3"], groups, p=[0.17, 0.53, 0.3])
    names = [f"g{n}" for n in range(groups)]
    return np.repeat(labels, sizes).tolist(), np.repeat(names, sizes).tolist()


def test_split_and_class_fractions_are_met():
    labels, groups = random_images(800)
    splits = assign(labels, groups)
    assert groups_are_whole(groups, splits)
    sizes, classes = Counter(splits), Counter(labels)
    pairs = Counter(zip(splits, labels, strict=True))
    assert sizes["test"] / len(labels) == pytest.approx(0.2, abs=0.01)
    assert sizes["val"] / len(labels) == pytest.approx(0.12, abs=0.015)
    for (name, label), count in pairs.items():
        assert count / sizes[name] == pytest.approx(classes[label] / len(labels), abs=0.02)


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.09])
def test_small_fractions_are_met(fraction):
    labels, groups = random_images(800)
    splits = Counter(assign(labels, groups, val=fraction, test=fraction))
    for name in ("val", "test"):
        assert splits[name] / len(labels) == pytest.approx(fraction, rel=0.15)


def test_split_depends_on_seed_only():
    labels, groups = random_images(200)
    assert assign(labels, groups) == assign(labels, groups)
    assert assign(labels, groups) != assign(labels, groups, seed=1)


def test_random_splits_have_whole_groups_and_the_sizes_of_the_given_one():
    labels, groups = random_images(200)
    splits = assign(labels, groups)
    drawn = random_group_splits(labels, groups, splits, 30, seed=0)
    np.testing.assert_array_equal(drawn, random_group_splits(labels, groups, splits, 30, seed=0))
    assert len(np.unique(drawn, axis=1).T) == 30, "all differ"
    pairs = Counter(zip(splits, labels, strict=True))
    for column in drawn.T:
        names = [SPLITS[code] for code in column]
        assert groups_are_whole(groups, names)
        for pair, count in Counter(zip(names, labels, strict=True)).items():
            assert abs(count - pairs[pair]) < 6, "to within a group, the largest of which has 6"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(3, 40), st.integers(0, 10_000), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
def test_small_dataset_is_split_or_refused(groups, seed, val, test):
    labels, names = random_images(groups, seed)
    try:
        splits = assign(labels, names, None, val, test, seed)
    except SplitError as error:
        assert str(error).startswith(("class Type_", "split: "))  # noqa: PT017
    else:
        assert groups_are_whole(names, splits)
        pairs = set(zip(labels, splits, strict=True))
        assert pairs == {(label, name) for label in labels for name in SPLITS}


def test_smallest_dataset_that_can_be_split():
    splits = assign(list("aaabbb"), list("123456"))
    assert sorted(splits) == ["test", "test", "train", "train", "val", "val"]


def test_other_images_of_given_test_groups_are_excluded():
    labels, groups = random_images(60)
    test_groups = {groups[labels.index(label)] for label in set(labels)} | {"g0"}
    assert groups.count("g0") > 1
    given_splits = ["test" if group in test_groups else "" for group in groups]
    first = groups.index("g0")
    given_splits[first] = ""  # a further image of a test patient
    splits = assign(labels, groups, given_splits)
    assert splits[first] == EXCLUDED_LEAK
    assert [name == "test" for name in splits] == [name == "test" for name in given_splits]
    assert groups_are_whole(groups, splits)
    assert 0.05 < splits.count("val") / len(splits) < 0.25


def test_complete_given_splits_are_kept():
    given_splits = ["train", "val", "test"] * 6
    assert assign(["a"] * 9 + ["b"] * 9, range(18), given_splits) == given_splits


@pytest.mark.parametrize(
    ("labels", "groups", "given_splits", "message"),
    [
        ("aaabbbb", "1234455", None, "class b: expected at least 3 groups of images, .* got 2"),
        ("aaabbb", "123456", ["train", "val"] * 3, "expected test among the given .* train, val"),
        ("aaabbb", "123456", ["test"] * 6, "expected at least two groups to draw val from, got 0"),
        ("aaabbb", "123456", ["test"] + [""] * 5, "class b: expected images .* got none in test"),
    ],
)
def test_impossible_split_is_refused(labels, groups, given_splits, message):
    with pytest.raises(SplitError, match=message):
        assign(list(labels), list(groups), given_splits)
