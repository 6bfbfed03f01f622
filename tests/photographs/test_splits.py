"""Splits: groups stay whole, classes and sizes come out as asked for, given splits are kept, impossible ones refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.dataset import SPLITS
from stages.photographs.splits import LEAK, SplitError, assign_splits, nearest_in_train
from tests.helpers.image_files import picture


def split(labels, groups, given_splits=None, val=0.12, test=0.2, seed=0) -> list[str]:
    return assign_splits(labels, groups, given_splits or [""] * len(labels), val, test, seed)


def straddling(groups, splits) -> set:
    homes: dict = {}
    for group, name in zip(groups, splits, strict=True):
        homes.setdefault(group, set()).add(name)
    return {group for group, names in homes.items() if len(names - {LEAK}) > 1}


def photographs(groups: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Labels with the challenge's uneven classes, and groups of one to six."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 1, 2, 3, 6], groups)
    labels = rng.choice(["Type_1", "Type_2", "Type_3"], groups, p=[0.17, 0.53, 0.3])
    return np.repeat(labels, sizes).tolist(), np.repeat([f"g{n}" for n in range(groups)], sizes).tolist()


def test_sizes_and_classes_are_as_asked_for():
    labels, groups = photographs(800)
    splits = split(labels, groups)
    assert not straddling(groups, splits)
    shares, whole = Counter(splits), Counter(labels)
    assert shares["test"] / len(labels) == pytest.approx(0.2, abs=0.01)
    assert shares["val"] / len(labels) == pytest.approx(0.12, abs=0.015)
    for name in SPLITS:
        part = Counter(label for label, s in zip(labels, splits, strict=True) if s == name)
        for label in whole:
            assert part[label] / shares[name] == pytest.approx(whole[label] / len(labels), abs=0.02)


def test_seed_decides():
    labels, groups = photographs(200)
    assert split(labels, groups) == split(labels, groups)
    assert split(labels, groups) != split(labels, groups, seed=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(3, 40), st.integers(0, 10_000), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
def test_small_sets_are_split_or_refused(groups, seed, val, test):
    labels, names = photographs(groups, seed)
    try:
        splits = split(labels, names, None, val, test, seed)
    except SplitError as error:
        assert str(error).startswith(("class Type_", "split: "))  # noqa: PT017
    else:
        assert set(splits) == set(SPLITS)
        assert not straddling(names, splits)
        for label in set(labels):
            assert {s for one, s in zip(labels, splits, strict=True) if one == label} == set(SPLITS)


def test_the_least_that_can_be_split():
    assert sorted(split(list("aaabbb"), list("123456"))) == ["test", "test", "train", "train", "val", "val"]


def test_too_few_groups():
    with pytest.raises(SplitError, match=r"class b: expected at least 3 groups of photographs, .* got 2"):
        split(list("aaabbbb"), list("1234455"))


def test_given_test_split_keeps_its_groups_to_itself():
    labels, groups = photographs(60)
    tested = {groups[labels.index(label)] for label in set(labels)} | {"g0"}
    assert groups.count("g0") > 1
    given_splits = ["test" if group in tested else "" for group in groups]
    first = groups.index("g0")
    given_splits[first] = ""  # one more picture of a test patient
    splits = split(labels, groups, given_splits)
    assert splits[first] == LEAK
    assert [s == "test" for s in splits] == [s == "test" for s in given_splits]
    assert not straddling(groups, splits)
    assert 0.05 < splits.count("val") / len(splits) < 0.25


def test_everything_given():
    wanted = ["train", "val", "test"] * 6
    assert split(["a"] * 9 + ["b"] * 9, [str(n) for n in range(18)], wanted) == wanted
    with pytest.raises(SplitError, match="expected test among the given splits, got train, val"):
        split(["a"] * 9 + ["b"] * 9, [str(n) for n in range(18)], ["train", "val", "train"] * 6)
    with pytest.raises(SplitError, match="class b: expected photographs in train, val and test, got none in test"):
        split(["a"] * 3 + ["b"] * 15, [str(n) for n in range(18)], ["test"] + [""] * 17)


def test_leak_check_sees_a_copy():
    def grey(seed):
        return np.asarray(picture(seed).convert("L"))

    thumbnails = np.stack([grey(seed) for seed in (0, 1, 2, 3, 0)])
    nearest = nearest_in_train(thumbnails, ["train", "train", "train", "test", "test"], "test")
    assert nearest[0] < 0.9
    assert nearest[1] == pytest.approx(1)
