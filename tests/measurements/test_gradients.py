"""Input gradients: the share in the middle, the picture, and agreement with a linear model."""

import dataclasses

import numpy as np
import pytest
import torch

from stages.attacks.gradients import (
    central_energy,
    gradient_picture,
    gradient_shares,
    input_gradient,
)
from stages.core.checkpoints import StepCache
from tests.helpers.datasets import under_attack
from tests.helpers.models import LinearLogits


@pytest.mark.parametrize("size", [8, 56])
def test_share_is_a_quarter_of_a_uniform_gradient_all_of_a_central_one_and_scale_does_not_matter(
    size,
):
    gradient = torch.ones(3, 3, size, size)
    gradient[1, :, : size // 4] = 0  # the upper quarter of the rows
    gradient[2] = 0
    gradient[2, :, size // 2, size // 2] = 1e-20
    shares = central_energy(gradient)
    assert shares.tolist() == pytest.approx([1 / 4, 1 / 3, 1])
    assert torch.allclose(central_energy(gradient * 1e-12), shares)
    assert central_energy(torch.zeros(1, 3, 8, 8)).item() == 0


def test_shares_of_linear_model_are_those_of_its_weights(trained, fabric):
    dataset, _ = trained
    weight = torch.randn(3 * 16 * 16)
    target = under_attack(fabric, LinearLogits(weight, 0.0), dataset, batch_size=5)
    target = dataclasses.replace(
        target, split=dataclasses.replace(target.split, labels=dataset.labels % 2)
    )
    table = gradient_shares(target, dataset, StepCache())
    squares = weight.view(3, 16, 16) ** 2
    assert table["central_share"].to_numpy() == pytest.approx(
        float(squares[:, 4:12, 4:12].sum() / squares.sum()), rel=1e-4
    )
    assert list(table["path"]) == list(dataset.manifest["path"].iloc[target.split.rows])
    x, y, _ = target.load(np.arange(4))
    expected = torch.where((y == 0)[:, None], weight, -weight).view(4, 3, 16, 16)
    assert torch.allclose(input_gradient(target, x, y), expected)


def test_picture_is_white_at_the_percentile_and_black_without_gradient():
    gradient = torch.zeros(3, 10, 20)
    gradient[1] = -torch.arange(200.0).view(10, 20)  # the sign doesn't matter
    picture = gradient_picture(gradient)
    assert picture.shape == (10, 20)
    assert picture.dtype == np.uint8
    assert (
        picture == 255
    ).sum() == 2 + 1  # above the 99th percentile of 200 values, and what rounds to it
    assert picture[0, 0] == 0
    assert gradient_picture(torch.zeros(3, 4, 4)).max() == 0
