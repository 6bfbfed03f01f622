"""Exact nearest neighbors: the same as a full sort, whatever the block and number of processes."""

import numpy as np
import pytest

from stages.photographs import nearest
from stages.photographs.nearest import (
    largest_similarities,
    nearest_pairs,
    similar_to_chosen,
    unit_vectors,
)
from stages.photographs.parallel import parallel_map


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    distinct = rng.integers(0, 255, (40, 3, 3), dtype=np.uint8)
    return distinct[rng.integers(0, 40, 300)]  # many ties


def flattened(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def by_full_sort(file, neighbors: int, least: float) -> list[list[int]]:
    vectors = np.load(file)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]
    rows = np.repeat(np.arange(len(vectors)), order.shape[1])
    pairs = np.stack([rows, order.ravel()], axis=1)[similarity[rows, order.ravel()] >= least]
    return np.unique(np.sort(pairs, axis=1), axis=0).tolist()


@pytest.mark.parametrize("block_bytes", [2**26, 4 * 300 * 7])
@pytest.mark.parametrize(("neighbors", "least"), [(4, 0.6), (1, 0.9), (50, -1.0)])
def test_nearest_pairs_are_those_of_a_full_sort(
    images, tmp_path, monkeypatch, block_bytes, neighbors, least
):
    # Integers, so that a block of any height computes the very same similarities, ties included.
    monkeypatch.setattr(nearest, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "vectors.npy"
    np.save(file, (flattened(images) // 32).astype(np.float32))
    expected = by_full_sort(file, neighbors, least)
    assert nearest_pairs(file, 300, neighbors, least, map).tolist() == expected
    assert expected


def test_processes_find_what_a_single_process_finds(images, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "ROWS", 16)  # of this process; workers are given the blocks' rows
    rows, groups = np.arange(200, 300), np.arange(300) // 3
    with unit_vectors(images, np.arange(300), flattened, tmp_path) as file, parallel_map(2) as map_:
        pairs, single_pairs = (nearest_pairs(file, 300, 4, 0.6, m) for m in (map_, map))
        largest, single = (largest_similarities(file, rows, groups, 5, m) for m in (map_, map))
    np.testing.assert_array_equal(pairs, single_pairs)
    np.testing.assert_array_equal(largest, single)


@pytest.mark.parametrize("columns", [64, 4096])
def test_largest_similarities_are_those_of_all_products(images, tmp_path, monkeypatch, columns):
    monkeypatch.setattr(nearest, "ROWS", 16)
    monkeypatch.setattr(nearest, "COLUMNS", columns)
    rows, groups = np.arange(200, 300), np.arange(300) // 3
    with unit_vectors(images, np.arange(300), flattened, tmp_path) as file:
        largest = largest_similarities(file, rows, groups, 5, map)
        vectors = np.load(file)
    similarity = np.where(groups[rows][:, None] == groups, -2, vectors[rows] @ vectors.T)
    expected = -np.sort(-similarity, axis=1)[:, :5]
    np.testing.assert_allclose(largest, expected, atol=1e-6)


def test_vectors_similar_to_chosen_ones_are_those_of_all_products(images, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "ROWS", 16)
    chosen = np.random.default_rng(1).random((300, 9)) < 0.02
    with unit_vectors(images, np.arange(300), flattened, tmp_path) as file, parallel_map(2) as map_:
        found, single = (similar_to_chosen(file, chosen, 0.8, m) for m in (map_, map))
        similarity = np.load(file) @ np.load(file).T
    np.testing.assert_array_equal(found, single)
    np.fill_diagonal(similarity, -1)
    expected = [(similarity[:, column] >= 0.8).any(axis=1) for column in chosen.T]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    assert not list(tmp_path.iterdir()), "the files are temporary"


@pytest.mark.parametrize("order", ["C", "F"])
def test_products_of_unit_vectors_are_correlations(images, tmp_path, monkeypatch, order):
    monkeypatch.setattr(nearest, "COLUMNS", 7)
    rows = np.array([5, 3, 250, *range(20, 40)])
    with unit_vectors(
        images, rows, lambda part: np.array(flattened(part), order=order), tmp_path
    ) as file:
        vectors = np.load(file)
    expected = np.corrcoef(flattened(images[rows]))
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-5)
    assert not list(tmp_path.iterdir()), "the file is temporary"
