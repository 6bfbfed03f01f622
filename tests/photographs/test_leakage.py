"""The check for near-duplicates of training images in held-out splits."""

import numpy as np
import pytest

from stages.photographs.leakage import leakage_check
from tests.helpers.image_files import make_image


def test_leakage_check_finds_copy_of_training_image(tmp_path):
    seeds = (9, 0, 1, 2, 3, 0, 4)
    thumbnails = np.stack([np.asarray(make_image(seed).convert("L")) for seed in seeds])
    names = ("train", "train", "train", "test", "test", "val")
    splits = dict(enumerate(names, 1))  # the first image was excluded
    check = leakage_check(thumbnails, splits, 0, map, tmp_path)
    assert check["test"]["highest"] == pytest.approx(1)
    assert check["test"]["alike_share"] == 0.5
    assert check["val"]["highest"] < 0.9
    assert not list(tmp_path.iterdir())
