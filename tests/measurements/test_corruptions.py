"""Common corruptions: valid images, stronger with the severity, reproducible for each image."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from stages.attacks import suite
from stages.attacks.corruptions import (
    ANGLES,
    CORRUPTIONS,
    SHIFTS,
    corrupt,
    evaluate_corruptions,
    rotate_and_shift,
)
from stages.attacks.suite import per_image_noise
from stages.core.checkpoints import StepCache
from stages.core.devices import make_fabric
from stages.core.params_file import load_params
from tests.helpers.datasets import under_attack
from tests.helpers.repository import ROOT

SEVERITIES = (1, 2, 3)
PGD = partial(suite.pgd, steps=5, restarts=1, norm="linf")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 3, 24, 24) * 0.6 + 0.2


def noise_of(rows, x):
    return per_image_noise(0, np.array(rows), x.shape[1:], x)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_gives_valid_image_and_is_deterministic(name, severity, x):
    noise = noise_of(range(4), x)
    corrupted = corrupt(name, severity, x, noise)
    assert corrupted.shape == x.shape
    assert corrupted.dtype == torch.float32
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert torch.equal(corrupted, corrupt(name, severity, x, noise))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_does_not_depend_on_the_batch(name, severity, x):
    batch = corrupt(name, severity, x, noise_of(range(4), x))
    single = corrupt(name, severity, x[2:3], noise_of([2], x))
    assert torch.allclose(single[0], batch[2], atol=1e-6)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_grows_with_severity(name, x):
    noise = noise_of(range(4), x)
    changes = [
        float((corrupt(name, severity, x, noise) - x).abs().mean()) for severity in SEVERITIES
    ]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_predictions_in_lower_precision_are_those_of_float32(trained):
    """The small net's accuracy on severe corruptions is in between, so that there are close decisions."""
    dataset, model = trained
    tables = []
    for precision in ("fp32", "bf16"):
        runtime = load_params(ROOT / "params.yaml").runtime.model_copy(
            update={"device": "cpu", "precision": precision}
        )
        target = under_attack(make_fabric(runtime), model, dataset, batch_size=7)
        tables.append(
            evaluate_corruptions(
                target, dataset, partial(suite.fgsm, norm="linf"), 0.02, StepCache()
            )
        )
    single, lower = (table[table["attack"] == "none"] for table in tables)
    assert (single["prediction"] == lower["prediction"]).all()
    assert (single["confidence"] != lower["confidence"]).any()
    assert 0.4 < (single["prediction"] == single["label"]).mean() < 0.95


def outcomes(table, **case) -> np.ndarray:
    """Whether each image is classified correctly in one case of corruptions.csv."""
    rows = table[np.all([table[name] == value for name, value in case.items()], axis=0)]
    return (rows["prediction"] == rows["label"]).to_numpy()


@pytest.mark.parametrize("batch_size", [5, 24])
def test_attack_on_corrupted_images_is_worse_than_the_corruption_and_stronger_with_eps(
    batch_size, trained, fabric
):
    dataset, model = trained
    target = under_attack(fabric, model, dataset, batch_size=batch_size)
    tables = [evaluate_corruptions(target, dataset, PGD, eps, StepCache()) for eps in (0.01, 0.1)]
    falls = 0
    for name in CORRUPTIONS:
        without = outcomes(tables[0], corruption=name, severity=2, attack="none")
        weak, strong = (outcomes(table, corruption=name, attack="pgd") for table in tables)
        assert not (weak & ~without).any(), "an attack corrects nothing"
        assert strong.sum() <= weak.sum()
        falls += without.sum() - strong.sum()
    assert falls > 0


def test_spatial_case_is_the_worst_of_all_rotations_and_shifts(trained, fabric):
    dataset, model = trained
    target = under_attack(fabric, model, dataset, batch_size=7)
    table = evaluate_corruptions(target, dataset, PGD, 0.01, StepCache())
    x, y, _ = target.load(np.arange(24))
    with torch.no_grad():
        each = [
            model(rotate_and_shift(x, angle, shift)).argmax(1) == y
            for angle, shift in itertools.product(ANGLES, SHIFTS)
        ]
    assert len(each) == 25
    assert (
        outcomes(table, corruption="spatial", attack="grid") == torch.stack(each).all(0).numpy()
    ).all()


@pytest.mark.parametrize("shape", [(24, 24), (24, 32)])
def test_rotation_and_shift_move_a_spot_where_they_should(shape):
    height, width = shape
    x = torch.zeros(1, 3, height, width)
    image = torch.rand(1, 3, *shape)
    assert torch.allclose(rotate_and_shift(image, 0, (0, 0)), image, atol=1e-5)
    assert torch.allclose(
        rotate_and_shift(image, 0, (2 / width, -1 / height))[..., : height - 1, 2:],
        image[..., 1:, :-2],
        atol=1e-4,
    )
    x[..., height // 2 - 1 : height // 2 + 1, width // 2 + 7 : width // 2 + 9] = (
        1  # eight pixels right of the middle
    )
    turned = rotate_and_shift(x, 90, (0, 0))[0, 0]
    row, column = np.unravel_index(int(turned.argmax()), shape)
    assert abs(abs(row + 0.5 - height / 2) - 8) <= 1
    assert abs(column + 0.5 - width / 2) <= 1
    assert turned.sum() == pytest.approx(x[0, 0].sum().item(), rel=0.05)


def test_what_was_outside_is_mirrored_not_black():
    x = torch.full((1, 3, 24, 24), 0.7)
    assert torch.allclose(rotate_and_shift(x, 10, (0.04, -0.04)), x, atol=1e-5)
