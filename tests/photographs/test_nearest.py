"""Exact nearest neighbors: the same as a full sort, whatever the block and the number of processes."""

import numpy as np
import pytest

from stages.photographs import nearest
from stages.photographs.nearest import largest_similarities, nearest_pairs, unit_vectors
from stages.photographs.parallel import parallel_map


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    distinct = rng.integers(0, 255, (40, 3, 3), dtype=np.uint8)
    return distinct[rng.integers(0, 40, 300)]  # many ties


def identity(images: np.ndarray) -> np.ndarray:
    return images


def by_full_sort(file, neighbors: int, least: float) -> list[list[int]]:
    vectors = np.load(file)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]
    pairs = {
        (min(i, j), max(i, j))
        for i, row in enumerate(order.tolist())
        for j in row
        if similarity[i, j] >= least
    }
    return [list(pair) for pair in sorted(pairs)]


@pytest.mark.parametrize("block_bytes", [2**26, 4 * 300 * 7])
@pytest.mark.parametrize(("neighbors", "least"), [(4, 0.6), (1, 0.9), (50, -1.0)])
def test_nearest_pairs_are_those_of_a_full_sort(
    images, tmp_path, monkeypatch, block_bytes, neighbors, least
):
    # Integers, so that a block of any height computes the very same similarities, ties included.
    monkeypatch.setattr(nearest, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "vectors.npy"
    np.save(file, (images.reshape(300, -1) // 32).astype(np.float32))
    expected = by_full_sort(file, neighbors, least)
    assert nearest_pairs(file, 300, neighbors, least, map).tolist() == expected
    assert expected


def test_processes_find_what_a_single_process_finds(images, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "ROWS", 16)
    with unit_vectors(images, np.arange(300), identity, tmp_path) as file, parallel_map(2) as map_:
        rows, columns = np.arange(200, 300), np.arange(150)
        assert (
            nearest_pairs(file, 300, 4, 0.6, map_).tolist()
            == nearest_pairs(file, 300, 4, 0.6, map).tolist()
        )
        largest = largest_similarities(file, rows, columns, map_)
        np.testing.assert_array_equal(largest, largest_similarities(file, rows, columns, map))
        vectors = np.load(file)
        np.testing.assert_allclose(
            largest, (vectors[rows] @ vectors[columns].T).max(axis=1), atol=1e-6
        )


def test_vectors_are_centered_and_of_length_one_for_the_chosen_images(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(nearest, "COLUMNS", 7)
    rows = np.array([5, 3, 250, *range(20, 40)])
    with unit_vectors(images, rows, identity, tmp_path) as file:
        vectors = np.load(file)
    assert vectors.shape == (len(rows), 9)
    np.testing.assert_allclose(vectors.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, atol=1e-5)
    expected = np.corrcoef(images[rows].reshape(len(rows), -1))
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-5)
    assert not list(tmp_path.iterdir()), "the file is temporary"


def test_order_of_a_feature_in_memory_is_irrelevant(images, tmp_path):
    with unit_vectors(
        images,
        np.arange(300),
        lambda part: np.asfortranarray(part.reshape(len(part), -1)),
        tmp_path,
    ) as file:
        vectors = np.load(file)
    with unit_vectors(images, np.arange(300), identity, tmp_path) as file:
        np.testing.assert_array_equal(vectors, np.load(file))
