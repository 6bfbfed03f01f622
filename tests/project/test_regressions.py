"""Defects that make an evaluation of robustness meaningless, yet are common; each has its test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages import preprocess
from stages.attacks import gradient
from stages.attacks.attack import Noise
from stages.attacks.autoattack import full_ensemble
from stages.attacks.registry import LEAN_ENSEMBLE, SUITE
from stages.core.dataset import load_dataset
from stages.core.norms import Budget
from stages.core.predictions import is_correct
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.training.validation import StandardValidation, validate
from tests.helpers.datasets import toy_dataset
from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.measuring import make_context, run_suite
from tests.helpers.models import tiny_classifier
from tests.helpers.params import params
from tests.helpers.preprocessing import set_params
from tests.helpers.training_runs import train

BUDGET = Budget.of("linf", 8 / 255)
ATTACKS = {attack.name: attack for attack in (*SUITE, *LEAN_ENSEMBLE, *full_ensemble(3))}


class PerfectClassifier(nn.Module):
    """Predicts the brightest channel, which is the label of every toy image."""

    def forward(self, x):
        return x.mean((2, 3)) * 100


def test_fgsm_can_move_every_channel_by_eps():
    """Defect: clipping to [0, 1] after normalization cuts the red channel to a quarter of it."""
    model, x = tiny_classifier().eval(), torch.rand(8, 3, 16, 16) * 0.8 + 0.1
    x_adv = gradient.fgsm(model, x, model(x).argmax(1), BUDGET)
    moved = (x_adv - x).abs().amax((2, 3))  # (B, channel)
    assert torch.allclose(moved, torch.tensor(BUDGET.eps), atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_does_not_train_the_model(name):
    """Defect: backward() and then optimizer.step(), so that attacks change the weights."""
    model, x, y = tiny_classifier().train(), torch.rand(4, 3, 16, 16), torch.arange(4) % 3
    model.backbone.body[1].eval()  # a mixture of modes must stay that mixture
    model.backbone.head[2].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    p = params(**{"attack_eval.aa_steps": 4, "attack_eval.aa_queries": 4}).attack_eval
    ATTACKS[name].run(model, x, y, BUDGET, Noise(0, np.arange(4), x), p)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.head.2.bias"]


def test_loaded_models_are_independent_of_each_other(tmp_path):
    """Defect: one model object shared by all experiments."""
    file = tmp_path / "clean.safetensors"
    classifier.save(file, Classifier("squeezenet1_1", ("a", "b"), 32))
    before = file.read_bytes()
    first, second = classifier.load(file), classifier.load(file)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert file.read_bytes() == before
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_validation_runs_in_eval_mode(fabric, tmp_path):
    """Defect: adversarial accuracy with dropout on and BatchNorm's statistics moving."""
    in_train_mode = []

    class ModeRecorder(StandardValidation):
        def image_metrics(self, model, x, y, noise):
            in_train_mode.append(any(module.training for module in model.modules()))
            return {}

    train(fabric, tmp_path, validation=ModeRecorder)
    assert set(in_train_mode) == {False}


@pytest.mark.parametrize("batch_size", [1, 5, 7, 24])
def test_perfect_classifier_has_accuracy_one_at_any_batch_size(fabric, batch_size):
    """Defect: correct predictions of some batches divided by the size of the whole dataset."""
    dataset, model, eps = toy_dataset(size=16), PerfectClassifier(), 1e-4
    val = DatasetSplit.from_dataset(dataset, "val")
    validation = StandardValidation(val, Budget.of("linf", eps), steps=2, images=len(val))
    row = validate(fabric, model, validation, 0, batch_size)
    kinds = ("clean", "balanced", "robust")
    assert [row[f"val_{kind}_accuracy"] for kind in kinds] == [1, 1, 1]
    changes = {"attack_eval.batch_size": batch_size, "attack.eps": eps, "attack.eps_grid": [eps]}
    assert is_correct(run_suite(make_context(fabric, dataset, {"clean": model}, **changes))).all()


@pytest.fixture
def preprocessed(tmp_path, monkeypatch) -> Path:
    """What the stage makes of two images of each patient and one corrupted file."""
    files = {
        f"Type_{patient % 3 + 1}/p{patient}_{i}.png": encode(make_image(2 * patient + i), "PNG")
        for patient in range(24)
        for i in range(2)
    }
    write_files(tmp_path / "raw", files | {"Type_1/p0_9.jpg": b"\xff\xd8\xff\xe0 not the rest"})
    set_params(tmp_path, group_pattern=r"p(\d+)_")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    preprocess.main()
    return tmp_path / "data/processed"


def test_no_patient_is_in_two_splits(preprocessed):
    """Defect: images split one by one, so that patients are in training and test split."""
    manifest = load_dataset(preprocessed).manifest
    patients = manifest["path"].str.extract(r"p(\d+)_", expand=False)
    assert (manifest.groupby(patients)["split"].nunique() == 1).all()
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_corrupted_file_is_rejected_once_with_its_reason(preprocessed):
    """Defect: a corrupted file read as (None, None), which no batch can hold."""
    rejected = pd.read_csv(preprocessed / "rejected.csv")
    assert rejected["path"].tolist() == ["Type_1/p0_9.jpg"]
    assert rejected["reason"].str.len().gt(5).all()
    dataset = load_dataset(preprocessed)
    assert len(dataset.images) == 48
    x, y = DatasetSplit.from_dataset(dataset, "train").load(np.arange(8), torch.device("cpu"))
    assert (len(x), len(y)) == (8, 8)
    assert x.isfinite().all()


@pytest.fixture
def evaluate(fabric):
    """A function that attacks the same model on every call."""
    model, dataset = tiny_classifier().eval(), toy_dataset(size=16)
    return lambda: run_suite(make_context(fabric, dataset, {"clean": model}))


def test_evaluation_is_reproducible(evaluate):
    """Defect: no seed. The global generators are not reset between the two runs."""
    pd.testing.assert_frame_equal(evaluate(), evaluate(), check_exact=True)


def test_evaluation_has_every_class_several_eps_and_pgd(evaluate):
    """Defect: one accuracy over all classes, one ε, and FGSM training never evaluated by PGD."""
    rows = evaluate()
    assert set(rows["label"]) == {"a", "b", "c"}
    assert rows["eps"].nunique() == 4
    assert "pgd" in set(rows["attack"])
