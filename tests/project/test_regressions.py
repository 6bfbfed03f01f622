"""Defects that make an evaluation of robustness meaningless, yet are common; each test fails if its defect appears here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from stages import preprocess
from stages.attacks import suite
from stages.attacks.suite import per_image_noise
from stages.core.dataset import load_dataset
from stages.core.params import ThreatModel
from stages.core.params_file import load_params
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import fuse_batchnorm
from stages.models.weights import create_model
from stages.training.validation import StandardValidation, Validation, validate
from tests.helpers.datasets import attack_predictions, toy_dataset
from tests.helpers.models import tiny_classifier
from tests.helpers.repository import ROOT

EPS = 8 / 255
PARAMS = load_params(ROOT / "params.yaml").attack_eval


class PerfectClassifier(nn.Module):
    """Predicts the brightest channel, which is the label of every toy image."""

    def forward(self, x):
        return x.mean((2, 3)) * 100


def test_fgsm_can_move_every_channel_by_eps():
    """Defect: clipping to [0, 1] after normalization, which cuts the red channel to a quarter of its range."""
    model = tiny_classifier().eval()
    x = torch.rand(8, 3, 16, 16) * 0.8 + 0.1
    y = model(x).argmax(1)
    x_adv = suite.fgsm(
        model, x, y, EPS, per_image_noise(0, np.arange(8), x.shape[1:], x), norm="linf"
    )
    moved = (x_adv - x).abs().amax((2, 3))  # (B, channel)
    changed = moved.amax(1) > 0
    assert changed.any()
    assert torch.allclose(moved[changed], torch.tensor(EPS), atol=1e-6), (
        "every channel can move by eps"
    )
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


@pytest.mark.parametrize("name", suite.attack_suite(PARAMS, norm="linf"))
def test_attack_does_not_train_the_model(name):
    """Defect: backward() and then optimizer.step() in the attack, so that its gradients change the weights."""
    model = tiny_classifier()
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4) % 3
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack, _ = suite.attack_suite(PARAMS, norm="linf")[name]
    attack(model, x, y, EPS, per_image_noise(0, np.arange(4), x.shape[1:], x))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_loaded_models_are_independent_of_each_other(tmp_path):
    """Defect: one model object shared by all experiments."""
    file = tmp_path / "clean.safetensors"
    classifier.save(file, create_model("squeezenet1_1", ("a", "b"), 32, "none", "none", 0))
    before = file.read_bytes()
    first, second = classifier.load(file), classifier.load(file)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert file.read_bytes() == before
    assert all(
        not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def validation_of(
    split: DatasetSplit, kind: type[Validation] = StandardValidation, eps: float = 1e-4
) -> Validation:
    return kind(split, "linf", eps, steps=2, images=len(split))


def test_validation_runs_in_eval_mode_and_restores_train_mode(fabric):
    """Defect: adversarial accuracy of training batches, with dropout on and BatchNorm's statistics moving."""
    model, in_train_mode = tiny_classifier(), []

    class ModeRecorder(StandardValidation):
        def image_metrics(self, model, x, y, noise):
            in_train_mode.append(any(module.training for module in model.modules()))
            return {}

    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    split = DatasetSplit.from_dataset(toy_dataset(size=16), "val")
    first, second = (
        validate(fabric, model, validation_of(split, ModeRecorder, EPS), 0, 8) for _ in range(2)
    )
    assert first == second
    assert in_train_mode
    assert not any(in_train_mode)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 5, 7, 24])
def test_perfect_classifier_has_accuracy_one_at_any_batch_size(fabric, batch_size):
    """Defect: correct predictions of some batches divided by the size of the whole dataset, so that 100 % reads as 80 %."""
    dataset = toy_dataset(size=16)
    split = DatasetSplit.from_dataset(dataset, "val")
    row = validate(fabric, PerfectClassifier(), validation_of(split), 0, batch_size)
    assert (
        row["val_clean_accuracy"] == row["val_balanced_accuracy"] == row["val_robust_accuracy"] == 1
    )
    p = PARAMS.model_copy(update={"batch_size": batch_size})
    threat = ThreatModel(norm="linf", eps=1e-4, eps_grid=(1e-4,))
    table = attack_predictions(fabric, PerfectClassifier(), dataset, threat, p)
    assert (table["label"] == table["prediction"]).all()


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """The real stage on a folder with two images of each patient and one corrupted file."""
    rng = np.random.default_rng(0)
    for kind in range(3):
        folder = tmp_path / f"source/Type_{kind + 1}"
        folder.mkdir(parents=True)
        for patient in range(8):
            for image in range(2):
                pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"p{kind}{patient}_{image}.png")
    (tmp_path / "source/Type_1/p00_9.jpg").write_bytes(b"\xff\xd8\xff\xe0 not the rest")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {
        "source": str(tmp_path / "source"),
        "groups": "none",
        "group_pattern": r"p(\d+)_",
        "label_fixes": "none",
    }
    params["runtime"]["tracking"] = False
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    preprocess.main()
    return Path("data/processed").resolve()


def test_no_patient_is_in_two_splits(preprocessed):
    """Defect: images split one by one, so that the same patients are in the training and the test split."""
    manifest = load_dataset(preprocessed).manifest
    manifest["patient"] = manifest["path"].str.extract(r"p(\d+)_", expand=False)
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_corrupted_file_is_rejected_once_with_its_reason(preprocessed):
    """Defect: a corrupted file read as (None, None), which no batch can hold."""
    rejected = pd.read_csv(preprocessed / "rejected.csv")
    assert rejected["path"].tolist() == ["Type_1/p00_9.jpg"]
    assert rejected["reason"].str.len().gt(5).all()
    dataset = load_dataset(preprocessed)
    assert len(dataset.images) == 48
    x, y = DatasetSplit.from_dataset(dataset, "train").load(np.arange(8), torch.device("cpu"))
    assert x.shape[:2] == (8, 3)
    assert x.isfinite().all()
    assert len(y) == 8


@pytest.fixture
def evaluate_tiny_classifier(fabric):
    """A function that attacks the same model on every call."""
    model, threat = (
        tiny_classifier().eval(),
        ThreatModel(norm="linf", eps=EPS, eps_grid=(EPS / 2, EPS)),
    )
    fused, dataset = fuse_batchnorm(model), toy_dataset(size=16)
    return lambda: attack_predictions(fabric, model, dataset, threat, PARAMS, fused_model=fused)


def test_evaluation_is_reproducible(evaluate_tiny_classifier):
    """Defect: no seed. The global generators are not reset between the two runs."""
    first, second = (evaluate_tiny_classifier() for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_evaluation_has_every_class_several_eps_and_pgd(evaluate_tiny_classifier):
    """Defect: one accuracy over all classes, one eps, and FGSM training that PGD never evaluated."""
    table = evaluate_tiny_classifier()
    assert set(table["label"]) == {"a", "b", "c"}
    assert table["eps"].nunique() == 3
    assert "pgd" in set(table["attack"])
