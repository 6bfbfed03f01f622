"""Common corruptions: valid images, stronger with the severity, reproducible for each image."""

import numpy as np
import pytest
import torch

from stages.attacks.corruptions import CORRUPTIONS, corrupt, evaluate_corruptions
from stages.attacks.suite import per_image_noise
from stages.core.checkpoints import StepCache
from stages.core.devices import make_fabric
from stages.core.params_file import load_params
from tests.helpers.datasets import under_attack
from tests.helpers.repository import ROOT

SEVERITIES = (1, 2, 3)


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
    changes = [float((corrupt(name, severity, x, noise) - x).abs().mean()) for severity in SEVERITIES]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_predictions_in_lower_precision_are_those_of_float32(trained):
    """The small net's accuracy on severe corruptions is in between, so that there are close decisions."""
    dataset, model = trained
    tables = []
    for precision in ("fp32", "bf16"):
        runtime = load_params(ROOT / "params.yaml").runtime.model_copy(update={"device": "cpu", "precision": precision})
        target = under_attack(make_fabric(runtime), model, dataset, batch_size=7)
        tables.append(evaluate_corruptions(target, dataset, np.arange(24), StepCache()))
    single, lower = tables
    assert (single["prediction"] == lower["prediction"]).all()
    assert (single["confidence"] != lower["confidence"]).any()
    assert 0.4 < (single["prediction"] == single["label"]).mean() < 0.95
