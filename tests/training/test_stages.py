"""Both training stages from files to files, also in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import yaml

from stages import train_adv, train_clean
from stages.core.dataset import IMAGES, MANIFEST
from stages.core.paths import PROCESSED, weights_path
from tests.helpers.datasets import toy_dataset
from tests.helpers.params import write_params
from tests.helpers.repository import ROOT


def set_params(section, **values):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    dataset = toy_dataset(size=24)
    PROCESSED.mkdir(parents=True)
    np.save(PROCESSED / IMAGES, dataset.images)
    dataset.manifest.to_csv(PROCESSED / MANIFEST, index=False)
    write_params(Path("params.yaml"))
    set_params("model", arch="resnet18")
    for section in ("train_clean", "train_adv"):
        set_params(section, epochs=2, val_images=6, val_steps=2)
    set_params("runtime", device="cpu", precision="fp32", tracking=False)


def test_stages_write_model_and_history_and_delete_checkpoint():
    for stage, name in ((train_clean, "clean"), (train_adv, "adv")):
        stage.main()
        history = pd.read_csv(f"plots/training_{name}.csv")
        assert list(history["epoch"]) == [1, 2]
        assert history["chosen"].sum() == 1
    assert {"val_fgsm_accuracy", "robust_overfitting"} <= set(history)
    weights = weights_path("adv").read_bytes()
    train_adv.main()
    assert weights_path("adv").read_bytes() == weights, "a rerun writes the same bytes"
    assert [path.name for path in Path(".ckpt").glob("*/*")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("trades", {"awp": 0.01, "clean_share": 0.3}),
        ("free", {"steps": 2, "freeze": "layer1"}),
    ],
)
def test_two_processes_train_same_model_as_single_process(method, settings):
    """Same images, same steps; in float64, because the sign of a gradient amplifies rounding."""
    set_params("train_clean", epochs=1)
    # Two processes have 8 and 7 images of each batch: parts of different size.
    adversarial = {"method": method, "batch_size": 15, "lr": 0.005, "eps_ramp": 0.0, **settings}
    set_params("train_adv", **adversarial)
    train_clean.main()
    weights, histories = [], []
    for devices in (1, 2):
        set_params("runtime", devices=devices)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.helpers.double_precision"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch   1/2") == 1, "only the first process prints"
        weights.append(safetensors.torch.load_file(weights_path("adv")))
        histories.append(pd.read_csv("plots/training_adv.csv"))
    for column in ("train_loss", "val_loss"):
        assert np.allclose(histories[0][column], histories[1][column], rtol=1e-5)
    initial = safetensors.torch.load_file(weights_path("clean"))
    for name, single in weights[0].items():
        change = (single.double() - initial[name].double()).norm()
        difference = (weights[1][name].double() - single.double()).norm()
        assert difference <= 1e-5 * change + 1e-9, (
            f"{name}: differs by {difference:.2g}, training changed it by {change:.2g}"
        )
