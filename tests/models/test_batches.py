"""Which pictures are trained on, how often, and with which weight."""

import numpy as np
import pytest
import torch

from stages.core.dataset import DatasetError
from stages.models.batches import DatasetSplit, class_weights, epoch_indices
from tests.conftest import toy_store


def test_class_weights_give_every_class_the_same_total():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    assert np.allclose(weights * np.bincount(labels), 10 / 3)
    assert weights[labels].mean() == pytest.approx(1)


def test_sampler_draws_every_class_as_often():
    split = DatasetSplit(np.zeros((3000, 1, 1, 3), np.uint8), np.array([0] * 2700 + [1] * 300), np.arange(3000))
    order = epoch_indices(split, 2, "sampler", torch.Generator().manual_seed(0))
    assert abs(split.labels[order].mean() - 0.5) < 0.05
    order = epoch_indices(split, 2, "none", torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(3000))


def test_an_empty_split_is_refused():
    store = toy_store(images=6)
    with pytest.raises(DatasetError, match="expected photographs in the split 'test'"):
        DatasetSplit.of(store, "test")
