"""Which images are trained on, how often, and with which weight."""

import numpy as np
import pytest
import torch

from stages.core.errors import InputError
from stages.models.batches import DatasetSplit, class_weights, epoch_positions
from tests.helpers.datasets import toy_dataset


def test_class_weights_give_every_class_the_same_total():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    assert np.allclose(weights * np.bincount(labels), 10 / 3)
    assert weights[labels].mean() == pytest.approx(1)


@pytest.fixture
def imbalanced() -> DatasetSplit:
    return DatasetSplit(
        np.zeros((3000, 1, 1, 3), np.uint8), np.array([0] * 2700 + [1] * 300), np.arange(3000)
    )


def test_sampler_draws_every_class_equally_often(imbalanced):
    positions = epoch_positions(imbalanced, 2, "sampler", torch.Generator().manual_seed(0))
    assert abs(imbalanced.labels[positions].mean() - 0.5) < 0.05


def test_without_sampler_an_epoch_has_every_image_once(imbalanced):
    positions = epoch_positions(imbalanced, 2, "none", torch.Generator().manual_seed(0))
    assert sorted(positions) == list(range(3000))


def test_empty_split_is_refused():
    with pytest.raises(InputError, match="expected images in the split 'test', got none"):
        DatasetSplit.from_dataset(toy_dataset(images=6), "test")
