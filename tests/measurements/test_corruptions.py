"""Corruptions: images, stronger with the severity, of each image alone; and attacks on them."""

import itertools

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from stages.attacks.attack import Noise
from stages.core.predictions import CLEAN, is_correct
from stages.measurements import corruptions
from stages.measurements.corruptions import (
    ANGLES,
    CORRUPTIONS,
    SEVERITIES,
    SHIFTS,
    SPATIAL,
    corrupt,
    rotate_and_shift,
)
from tests.helpers.datasets import relabel, toy_dataset
from tests.helpers.measuring import make_context
from tests.helpers.models import Wrapped


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 3, 24, 24) * 0.6 + 0.2


def noise_of(x: torch.Tensor, rows=range(4)) -> Noise:
    return Noise(0, np.array(rows), x)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_gives_an_image_and_grows_with_severity(name, x):
    corrupted = [corrupt(name, severity, x, noise_of(x)) for severity in SEVERITIES]
    for image in corrupted:
        assert (image.shape, image.dtype) == (x.shape, torch.float32)
        assert 0 <= image.min() <= image.max() <= 1
    changes = [0.0, *((image - x).abs().mean().item() for image in corrupted)]
    assert changes == sorted(set(changes))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_of_the_image_alone(name, x):
    batch = corrupt(name, 3, x, noise_of(x))
    alone = corrupt(name, 3, x[2:3], noise_of(x[2:3], [2]))
    assert torch.allclose(alone[0], batch[2], atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 24), (24, 32)])
def test_rotation_and_shift_move_what_they_should(shape):
    (height, width), image = shape, torch.rand(1, 3, *shape)
    assert torch.allclose(rotate_and_shift(image, 0, (0, 0)), image, atol=1e-5)
    moved = rotate_and_shift(image, 0, (2 / width, -1 / height))
    assert torch.allclose(moved[..., : height - 1, 2:], image[..., 1:, :-2], atol=1e-4)
    middle, right = slice(height // 2 - 1, height // 2 + 1), width // 2 + 8
    spot = torch.zeros(1, 3, *shape)
    spot[..., middle, right - 1 : right + 1] = 1  # eight pixels right of the middle
    turned = rotate_and_shift(spot, 90, (0, 0))[0, 0]
    row, column = np.unravel_index(int(turned.argmax()), shape)
    assert abs(abs(row + 0.5 - height / 2) - 8) <= 1
    assert abs(column + 0.5 - width / 2) <= 1
    assert turned.sum() == pytest.approx(spot[0, 0].sum().item(), rel=0.05)


def test_what_was_outside_is_mirrored_not_black():
    x = torch.full((1, 3, 24, 24), 0.7)
    assert torch.allclose(rotate_and_shift(x, 10, (0.04, -0.04)), x, atol=1e-5)


def rows_of(fabric, trained, eps=0.02, batch_size=7):
    """corruptions.csv."""
    changes = {"attack.eps": eps, "attack_eval.batch_size": batch_size}
    context = make_context(fabric, trained[0], {"clean": trained[1]}, **changes)
    return corruptions.run(context)["corruptions"]


def correct(rows, **case) -> np.ndarray:
    """(n,) bool: the images of one case."""
    chosen = np.all([rows[column] == value for column, value in case.items()], axis=0)
    return is_correct(rows[chosen])


@pytest.fixture(scope="module")
def rows(fabric, trained):
    return rows_of(fabric, trained)


def test_predictions_in_lower_precision_are_those_of_float32(rows, trained):
    """The small net's accuracy is in between, so that there are close decisions."""
    low_precision = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    dataset, model = trained
    low = rows_of(low_precision, (dataset, Wrapped(model, logits=torch.Tensor.float)))
    single, low = (table[table["attack"] == CLEAN] for table in (rows, low))
    assert (single["prediction"] == low["prediction"]).all()
    assert (single["confidence"] != low["confidence"]).any()
    assert 0.4 < is_correct(single).mean() < 0.95


def test_attack_on_corrupted_images_only_harms_and_more_so_with_a_larger_eps(rows, fabric, trained):
    strong, fallen = rows_of(fabric, trained, eps=0.1, batch_size=24), 0
    for name in CORRUPTIONS:
        without = correct(rows, corruption=name, severity=2, attack=CLEAN)
        weak, worse = (correct(r, corruption=name, attack="pgd") for r in (rows, strong))
        assert not (weak & ~without).any()
        assert worse.sum() <= weak.sum()
        fallen += without.sum() - worse.sum()
    assert fallen > 0


def test_spatial_case_is_the_worst_of_all_rotations_and_shifts(fabric):
    model, dataset = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)), toy_dataset(size=16)
    pixels = torch.from_numpy(dataset.images).permute(0, 3, 1, 2) / 255
    dataset = relabel(dataset, model(pixels).argmax(1).numpy())
    target = make_context(fabric, dataset, {"clean": model}).target
    batch, grid = target.load(target.everything), itertools.product(ANGLES, SHIFTS)
    with torch.no_grad():
        each = [model(rotate_and_shift(batch.x, *move)).argmax(1) == batch.y for move in grid]
    expected = torch.stack(each).all(0).numpy()
    assert 0 < expected.sum() < len(expected)
    assert (correct(rows_of(fabric, (dataset, model)), corruption=SPATIAL) == expected).all()
