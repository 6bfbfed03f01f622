"""The tables against an independent reimplementation in a few lines: nothing comes from stages/."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from scipy.stats import binomtest

from tests.helpers.projects import run, set_params

pytestmark = pytest.mark.slow
EPS, STEPS = 8 / 255, 2  # as in tests/helpers/projects.py
CLASSES = ["Type_1", "Type_2", "Type_3"]


@pytest.fixture(scope="module")
def project(pipeline_project, tmp_path_factory):
    """A copy of the finished pipeline whose clean model was attacked in float32, as here."""
    folder = tmp_path_factory.mktemp("oracle") / "project"
    ignored = shutil.ignore_patterns(".git", "cache", "mlflow.db*", "mlartifacts")
    shutil.copytree(pipeline_project, folder, ignore=ignored)
    set_params(folder / "params.yaml", **{"runtime.precision": "fp32", "runtime.tracking": False})
    run(sys.executable, "-m", "stages.attack_eval", "clean", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def model(project):
    """(B, 3, H, W) in [0, 1] -> logits, from torchvision's network and the saved weights."""
    weights = safetensors.torch.load_file(project / "data/models/clean.safetensors")
    network = torchvision.models.resnet18(num_classes=3).eval()
    network.load_state_dict({key.removeprefix("backbone."): w for key, w in weights.items()})
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return lambda x: network(normalize(x))


@pytest.fixture(scope="module")
def manifest(project):
    """The manifest of the test images."""
    return pd.read_csv(project / "data/processed/manifest.csv").query("split == 'test'")


@pytest.fixture(scope="module")
def images(project, manifest):
    """x and y of the test images."""
    pixels = np.load(project / "data/processed/images.npy")[manifest.index]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return x, torch.tensor([CLASSES.index(label) for label in manifest["label"]])


@pytest.fixture(scope="module")
def rows_of(project, manifest):
    """A function attack, ε -> what attack_eval wrote of the test images, in their order."""
    table = pd.read_csv(project / "data/predictions/clean/predictions.csv")

    def select(attack, eps):
        chosen = table[(table["attack"] == attack) & np.isclose(table["eps"], eps, rtol=1e-4)]
        return chosen.set_index("path").loc[manifest["path"]]

    return select


@pytest.fixture(scope="module")
def correct(rows_of):
    """A function attack, ε -> (n,) bool."""
    return lambda *case: rows_of(*case).eval("prediction == label").to_numpy()


def gradient(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


@torch.no_grad()
def is_correct(model, x, y):
    return (model(x).argmax(1) == y).numpy()


def test_clean_probabilities_are_those_of_the_saved_weights(model, images, rows_of):
    with torch.no_grad():
        expected = model(images[0]).softmax(1).numpy()
    found = rows_of("none", 0)[[f"p_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fgsm_fools_the_same_images(model, images, correct):
    x, y = images
    x_adv = (x + EPS * gradient(model, x, y).sign()).clamp(0, 1)
    expected = is_correct(model, x, y) & is_correct(model, x_adv, y)
    np.testing.assert_array_equal(correct("fgsm", EPS), expected)


def test_bim_fools_the_same_images(model, images, correct):
    x, y = images
    x_adv, expected = x, is_correct(model, x, y)
    for _ in range(STEPS):
        x_adv = x_adv + 2.5 * EPS / STEPS * gradient(model, x_adv, y).sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
        expected &= is_correct(model, x_adv, y)
    np.testing.assert_array_equal(correct("bim", EPS), expected)


def test_random_noise_is_no_stronger_than_many_draws(model, images, correct):
    """What fails under two draws of noise fails under one of 200 others, or is close to it."""
    (x, y), generator = images, torch.Generator().manual_seed(1)
    smallest = torch.full((len(x),), torch.inf)
    for _ in range(200):
        noise = 2 * torch.rand(x.shape, generator=generator) - 1
        with torch.no_grad():
            logits = model((x + EPS * noise).clamp(0, 1))
        other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        smallest = smallest.minimum(logits.gather(1, y[:, None])[:, 0] - other)
    assert (smallest.numpy()[~correct("uniform_noise", EPS)] < 0.1).all()


def test_metrics_are_those_of_the_tables(pipeline_project):
    """Every group is one image: the interval is Wilson's."""
    metrics = json.loads((pipeline_project / "metrics/evaluate.json").read_text())
    transfer = pd.read_csv(pipeline_project / "data/predictions/adv/transfer.csv")
    for name in ("clean", "adv"):
        table = pd.read_csv(pipeline_project / f"data/predictions/{name}/predictions.csv")
        within = pd.concat([table[table["eps"] <= EPS + 1e-6], transfer.query("target == @name")])
        robust = within.eval("prediction == label").groupby(within["path"]).all()
        clean = table.query("attack == 'none'").eval("prediction == label")
        for key, outcome in (("clean_accuracy", clean), ("robust_accuracy_worst", robust)):
            interval = binomtest(int(outcome.sum()), len(outcome)).proportion_ci(method="wilson")
            found = [metrics[name][f"{key}{end}"] for end in ("", "_low", "_high")]
            np.testing.assert_allclose(found, [outcome.mean(), *interval], atol=1e-5)
