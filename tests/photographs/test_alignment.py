"""Similarity of fine detail after alignment."""

import numpy as np
import pytest

from stages.photographs.alignment import fine_similarity
from stages.photographs.decoding import decode_image
from tests.helpers.image_files import encode, make_image


def thumbnail(seed: int) -> np.ndarray:
    return decode_image(encode(make_image(seed)), 16, "none").thumbnail


def test_similarity_of_equal_unrelated_and_flat_images():
    a, b, flat = thumbnail(0), thumbnail(1), np.full((64, 64), 90, np.uint8)
    similarity = fine_similarity(np.stack([a, a, flat]), np.stack([a, b, flat]))
    assert similarity[0] == pytest.approx(1)
    assert abs(similarity[1]) < 0.5
    assert similarity[2] == pytest.approx(0), "images without detail have no detail in common"


def test_similarity_of_pair_is_independent_of_batch():
    first, second = (np.stack([thumbnail(start + n) for n in range(6)]) for start in (0, 6))
    together = fine_similarity(first, second, 0.1)
    alone = [fine_similarity(first[n : n + 1], second[n : n + 1], 0.1)[0] for n in range(6)]
    assert together.tolist() == alone
