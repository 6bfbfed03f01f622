"""Input gradients and their pictures."""

import numpy as np
import pytest
import torch

from stages.measurements import gradients
from stages.measurements.gradients import central_energy
from stages.measurements.pictures import gradient_picture
from tests.helpers.datasets import toy_dataset
from tests.helpers.measuring import make_context
from tests.helpers.models import LinearLogits


@pytest.mark.parametrize("size", [8, 56])
def test_share_is_the_quarter_of_a_uniform_gradient_and_all_of_a_central_one(size):
    gradient = torch.ones(3, 3, size, size)
    gradient[1, :, : size // 4] = 0  # the upper quarter of the rows
    gradient[2] = 0
    gradient[2, :, size // 2, size // 2] = 1e-20
    shares = central_energy(gradient)
    assert shares.tolist() == pytest.approx([1 / 4, 1 / 3, 1])
    assert torch.allclose(central_energy(gradient * 1e-12), shares)
    assert central_energy(torch.zeros(1, 3, 8, 8)).item() == 0


def test_shares_of_a_linear_model_are_those_of_its_weights(fabric):
    weight = torch.randn(3, 16, 16)
    dataset = toy_dataset(images=32, size=16, classes=("a", "b"))
    context = make_context(fabric, dataset, {"clean": LinearLogits(weight.flatten(), 0.0)})
    rows = gradients.run(context)["gradients"]
    expected = (weight[:, 4:12, 4:12].square().sum() / weight.square().sum()).item()
    assert rows["central_share"].to_numpy() == pytest.approx(expected, rel=1e-4)
    assert list(rows["path"]) == list(dataset.manifest.query("split == 'test'")["path"])


def test_gradient_picture_is_white_at_the_percentile_and_black_without_gradient():
    gradient = torch.zeros(3, 10, 20)
    gradient[1] = -torch.arange(200.0).view(10, 20)  # the sign doesn't matter
    picture = gradient_picture(gradient)
    assert (picture.shape, picture.dtype) == ((10, 20), np.uint8)
    assert (np.diff(picture.flatten().astype(int)) >= 0).all()
    assert 1 <= (picture == 255).sum() <= 0.02 * picture.size
    assert not gradient_picture(torch.zeros(3, 4, 4)).any()
