"""The check of a split by coarse similarity: leakage shows, chance doesn't."""

import numpy as np
import pytest

from stages.photographs.leakage import leakage_check, outlier_p_values
from tests.helpers.image_files import make_image

COUNT, TEST_FROM = 180, 120  # images, the first of the test split
SPLITS = dict(enumerate(["train"] * 100 + ["val"] * 20 + ["test"] * 60, 1))
LABELS = ["a", "b"] * 100


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    """The first one is no image of the dataset."""
    images = [make_image(seed).convert("L") for seed in range(COUNT + 1)]
    return np.stack([np.asarray(image) for image in images])


def check_of(images: np.ndarray, folder, groups=None, seed: int = 0) -> dict:
    groups = groups or [str(row) for row in range(len(images))]
    return leakage_check(images, LABELS, groups, SPLITS, seed, map, folder)


def test_random_textures_show_no_leakage(textures, tmp_path):
    check = check_of(textures, tmp_path)
    assert not check["signs"]
    assert check["val"]["alike_share"] == check["test"]["alike_share"] == 0
    assert not list(tmp_path.iterdir()), "all files are temporary"


def test_copies_in_the_test_split_are_found_whatever_the_groups(textures, tmp_path):
    images = textures.copy()
    images[TEST_FROM + 1 : TEST_FROM + 13] = images[1:13] // 2 + 40  # of less contrast
    check = check_of(images, tmp_path)
    test = check["test"]
    assert test["alike_share"] == 12 / 60 > test["alike_by_group"]["high"]
    assert check["outliers"]["share"] >= 24 / COUNT > check["outliers"]["high"]
    assert len(check["signs"]) == 2
    joined = [str(row) for row in range(len(images))]
    joined[TEST_FROM + 1 : TEST_FROM + 13] = joined[1:13]
    check = check_of(images, tmp_path, joined)
    assert check["test"]["alike_by_group"]["high"] == 0, "no random split divides a group"
    assert check["outliers"]["share"] <= check["outliers"]["high"]


def test_missing_groups_show_although_random_splits_divide_them_too(textures, tmp_path):
    images = textures.copy()
    order = np.random.default_rng(0).permutation(np.arange(1, COUNT + 1))
    images[order[:90]] = images[order[90:]]  # two images of each scene, anywhere
    check = check_of(images, tmp_path)
    test = check["test"]
    assert test["alike_by_group"]["low"] <= test["alike_share"] <= test["alike_by_group"]["high"]
    (sign,) = check["signs"]
    assert "data.groups" in sign


def test_expectation_is_reproducible_and_its_interval_contains_the_mean(textures, tmp_path):
    images = textures.copy()
    images[TEST_FROM + 1 : TEST_FROM + 31] = images[1:31]
    first, again, other = (check_of(images, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["test"]["alike_by_group"] != other["test"]["alike_by_group"]
    for name in ("val", "test"):
        expected = first[name]["alike_by_group"]
        assert 0 <= expected["low"] <= expected["mean"] <= expected["high"] <= 1


def test_p_values_of_an_exponential_tail_are_uniform():
    values = np.random.default_rng(0).exponential(0.1, (2000, 500))
    largest = -np.sort(-np.tanh(values), axis=1)[:, :60]
    p = outlier_p_values(largest)
    for limit in (0.01, 0.1, 0.5):
        assert abs((p < limit).mean() - limit) < 4 * np.sqrt(limit * (1 - limit) / 2000) + 0.01
    largest[:, 0] = 0.99999
    assert (outlier_p_values(largest) < 0.01).mean() > 0.9
    assert (outlier_p_values(largest[:, :59]) == 1).all(), "too few neighbors to tell"
