"""The pipeline's tables against an independent reimplementation in a few lines: nothing here comes from stages/."""

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


@pytest.fixture(scope="module")
def project(pipeline_project, tmp_path_factory):
    """A copy of the finished pipeline whose clean model was attacked in float32, as here."""
    folder = tmp_path_factory.mktemp("oracle") / "project"
    shutil.copytree(
        pipeline_project,
        folder,
        ignore=shutil.ignore_patterns(".git", "cache", "mlflow.db*", "mlartifacts"),
    )
    set_params(folder / "params.yaml", **{"runtime.precision": "fp32", "runtime.tracking": False})
    run(sys.executable, "-m", "stages.attack_eval", "clean", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def model(project):
    """(B, 3, H, W) in [0, 1] -> logits, from torchvision's network and the saved weights."""
    weights = safetensors.torch.load_file(project / "data/models/clean.safetensors")
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(
        {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    )
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network.eval()
    return lambda x: network(normalize(x))


@pytest.fixture(scope="module")
def images(project):
    """x and y of the test images, and the table that attack_eval wrote about them, in the same order."""
    manifest = pd.read_csv(project / "data/processed/manifest.csv")
    test = (manifest["split"] == "test").to_numpy()
    x = (
        torch.from_numpy(np.load(project / "data/processed/images.npy")[test]).permute(0, 3, 1, 2)
        / 255
    )
    y = (
        torch.from_numpy(manifest["label"][test].str[-1].astype(int).to_numpy()) - 1
    )  # Type_1, Type_2, Type_3
    table = pd.read_csv(project / "data/predictions/clean/predictions.csv")
    return (
        x,
        y,
        {
            key: rows.set_index("path").loc[manifest["path"][test]]
            for key, rows in table.groupby(["attack", "eps"])
        },
    )


def rows_of(images, attack, eps):
    (rows,) = [
        rows
        for (name, budget), rows in images[2].items()
        if name == attack and budget == pytest.approx(eps, rel=1e-4)
    ]
    return rows


def is_correct(rows):
    return (rows["prediction"] == rows["label"]).to_numpy()


def gradient(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def test_clean_probabilities_are_those_of_the_saved_weights(model, images):
    x, _, _ = images
    with torch.no_grad():
        expected = model(x).softmax(1).numpy()
    rows = rows_of(images, "none", 0)
    np.testing.assert_allclose(
        rows[["p_Type_1", "p_Type_2", "p_Type_3"]].to_numpy(), expected, atol=1e-4
    )


def test_fgsm_fools_the_same_images(model, images):
    x, y, _ = images
    x_adv = (x + EPS * gradient(model, x, y).sign()).clamp(0, 1)
    with torch.no_grad():
        expected = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    np.testing.assert_array_equal(is_correct(rows_of(images, "fgsm", EPS)), expected.numpy())


def test_bim_fools_the_same_images(model, images):
    x, y, _ = images
    x_adv = x
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    for _ in range(STEPS):
        x_adv = x_adv + 2.5 * EPS / STEPS * gradient(model, x_adv, y).sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
        with torch.no_grad():
            correct &= model(x_adv).argmax(1) == y
    np.testing.assert_array_equal(is_correct(rows_of(images, "bim", EPS)), correct.numpy())


def test_random_noise_is_no_stronger_than_many_draws(model, images):
    """An image that fails under two draws of noise fails under one of 200 others, too, or is close to it."""
    x, y, _ = images
    generator = torch.Generator().manual_seed(1)
    smallest = torch.full((len(x),), torch.inf)
    with torch.no_grad():
        for _ in range(200):
            logits = model(
                (x + EPS * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
            )
            label = logits.gather(1, y[:, None])[:, 0]
            smallest = torch.minimum(
                smallest, label - logits.scatter(1, y[:, None], -torch.inf).amax(1)
            )
    fooled = ~is_correct(rows_of(images, "uniform_noise", EPS))
    assert (smallest.numpy()[fooled] < 0.1).all()


def test_metrics_are_those_of_the_tables(pipeline_project):
    """Every group is one image: the interval is Wilson's."""
    metrics = json.loads((pipeline_project / "metrics/evaluate.json").read_text())
    for name in ("clean", "adv"):
        table = pd.read_csv(pipeline_project / f"data/predictions/{name}/predictions.csv")
        correct = table["prediction"] == table["label"]
        clean = correct[table["attack"] == "none"]
        transfer = pd.read_csv(pipeline_project / "data/predictions/adv/transfer.csv")
        transfer = transfer[transfer["target"] == name]
        within = pd.concat([table[table["eps"] <= EPS + 1e-6], transfer])
        robust = (within["prediction"] == within["label"]).groupby(within["path"]).all()
        for key, outcome in (("clean_accuracy", clean), ("robust_accuracy_worst", robust)):
            interval = binomtest(int(outcome.sum()), len(outcome)).proportion_ci(method="wilson")
            found = [metrics[name][f"{key}{end}"] for end in ("", "_low", "_high")]
            np.testing.assert_allclose(found, [outcome.mean(), *interval], atol=1e-5)
