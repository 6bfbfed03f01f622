"""The check for near-duplicates of training images in held-out splits."""

import numpy as np
import pytest

from stages.photographs.leakage import max_train_similarity
from tests.helpers.image_files import make_image


def test_leakage_check_finds_copy_of_training_image():
    thumbnails = np.stack([np.asarray(make_image(seed).convert("L")) for seed in (0, 1, 2, 3, 0)])
    similarity = max_train_similarity(thumbnails, ["train", "train", "train", "test", "test"], "test")
    assert similarity[0] < 0.9
    assert similarity[1] == pytest.approx(1)
