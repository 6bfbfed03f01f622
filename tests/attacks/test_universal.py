"""Universal perturbations: within the budget, the optimum of a linear model, independent of batch size, effective."""

import dataclasses

import numpy as np
import pytest
import torch

from stages.attacks.perturbations import l2_norm
from stages.attacks.runner import attack_remaining, clean_result, correct_positions
from stages.attacks.universal import (
    add_perturbation,
    cached_universal_perturbation,
    craft_universal_perturbation,
)
from stages.core.checkpoints import StepCache
from stages.models.batches import DatasetSplit
from tests.helpers.datasets import toy_dataset, under_attack
from tests.helpers.models import LinearLogits

EPS = {"linf": 0.04, "l2": 0.5}  # no pixel leaves [0, 1]


@pytest.fixture
def linear_target(fabric):
    """All images of class 1 of a linear model, far inside it; of two classes, hence one direction."""
    dataset = toy_dataset(images=48, size=8, classes=("a", "b"))
    weight = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(1))
    target = under_attack(fabric, LinearLogits(weight, 100.0), dataset)
    return dataclasses.replace(
        target, split=dataclasses.replace(target.split, labels=np.ones_like(dataset.labels))
    ), weight


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbation_of_linear_model_is_the_optimum(norm, linear_target):
    target, weight = linear_target
    delta = craft_universal_perturbation(
        dataclasses.replace(target, norm=norm), EPS[norm]
    ).flatten()
    direction = -weight.sign() if norm == "linf" else -weight / weight.norm()
    assert torch.allclose(delta, EPS[norm] * direction, atol=1e-5)


def test_images_beyond_the_clamp_have_no_influence(linear_target):
    """Misclassified by far without any perturbation: nothing is left to gain."""
    target, _ = linear_target
    split = dataclasses.replace(target.split, labels=np.zeros_like(target.split.labels))
    assert (
        craft_universal_perturbation(dataclasses.replace(target, split=split), 0.1).abs().max() == 0
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbation_from_validation_images_fools_test_images_within_the_budget(
    norm, trained, fabric
):
    dataset, model = trained
    test = under_attack(fabric, model, dataset, norm=norm)
    validation = dataclasses.replace(test, split=DatasetSplit.from_dataset(dataset, "val"))
    eps = {"linf": 0.15, "l2": 3.0}[norm]
    delta = craft_universal_perturbation(validation, eps)
    size = delta.abs().max() if norm == "linf" else l2_norm(delta[None]).max()
    assert size <= eps * (1 + 1e-5)
    labels, clean = torch.from_numpy(test.split.labels[test.split.rows]), clean_result(test)
    everything = np.arange(len(test.split))
    result = attack_remaining(test, clean, "universal", add_perturbation(delta), eps, everything)
    random = eps * (
        delta * 0 + torch.randn(delta.shape, generator=torch.Generator().manual_seed(0)).sign()
    )
    random = random if norm == "linf" else random / l2_norm(random[None])[0] * eps
    noise = attack_remaining(test, clean, "noise", add_perturbation(random), eps, everything)
    correct = [len(correct_positions(r, labels)) for r in (result, noise, clean)]
    assert correct[0] < correct[1] <= correct[2]


def test_batch_size_of_attacks_and_images_of_other_splits_change_nothing(trained, fabric):
    dataset, model = trained
    target = under_attack(fabric, model, dataset)
    target = dataclasses.replace(target, split=DatasetSplit.from_dataset(dataset, "val"))
    reference = craft_universal_perturbation(target, 0.1)
    assert torch.equal(
        craft_universal_perturbation(dataclasses.replace(target, batch_size=5), 0.1), reference
    )
    others = dataset.images.copy()
    others[dataset.split_rows("test")] = 0
    changed = dataclasses.replace(target, split=dataclasses.replace(target.split, images=others))
    assert torch.equal(craft_universal_perturbation(changed, 0.1), reference)


def test_perturbation_is_kept_over_an_interruption(trained, fabric, monkeypatch):
    dataset, model = trained
    target, cache = under_attack(fabric, model, dataset), StepCache()
    first = cached_universal_perturbation(target, 0.1, cache, "clean")
    monkeypatch.setattr("stages.attacks.universal.craft_universal_perturbation", None)
    assert cached_universal_perturbation(target, 0.1, cache, "clean") is first
