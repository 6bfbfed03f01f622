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
from tests.conftest import toy_store
from tests.helpers.repository import ROOT

SMALL = {
    "model": {"arch": "resnet18"},
    "train_clean": {"epochs": 2, "val_images": 6, "val_steps": 2},
    "train_adv": {"epochs": 2, "val_images": 6, "val_steps": 2},
    "runtime": {"device": "cpu", "precision": "fp32", "tracking": False},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    store = toy_store(size=16)
    folder = tmp_path / "data/processed"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", store.images)
    store.manifest.to_csv(folder / "manifest.csv", index=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def set_params(project, section, **values):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_both_stages_write_a_model_and_its_curve_and_leave_no_state(project):
    for stage, name in ((train_clean, "clean"), (train_adv, "adv")):
        chosen = stage.main()
        curve = pd.read_csv(f"plots/training_{name}.csv")
        assert list(curve["epoch"]) == [1, 2]
        assert curve.loc[curve["chosen"] == 1, "epoch"].tolist() == [chosen["epoch"]]
        model = Path(f"data/models/{name}.safetensors").read_bytes()
        stage.main()
        assert Path(f"data/models/{name}.safetensors").read_bytes() == model, "the same bytes again"
    assert {"val_fgsm_accuracy", "val_gradient_cosine", "robust_overfitting", "catastrophic_overfitting"} <= set(curve)
    assert not list(Path(".ckpt").rglob("last.pt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [("nfgsm", {"clean_share": 0.3}), ("trades", {"awp": 0.01}), ("free", {"steps": 2}), ("pgd", {"freeze": "layer1"})],
)
def test_two_processes_train_what_one_trains(project, method, settings):
    """Same pictures, same steps; in float64, for an attack takes the sign of a gradient and makes much of rounding."""
    set_params(project, "train_clean", epochs=1)
    # Two processes have 8 and 7 pictures of each batch: shares that differ.
    set_params(project, "train_adv", method=method, epochs=2, batch_size=15, lr=0.005, eps_ramp=0.0, **settings)
    train_clean.main()
    results = []
    for devices in (1, 2):
        set_params(project, "runtime", devices=devices)
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
        assert done.stdout.count("epoch   1/2") == 1, "one process speaks for both"
        results.append((safetensors.torch.load_file("data/models/adv.safetensors"), pd.read_csv("plots/training_adv.csv")))
    (one, curve), (two, curve_two) = results
    assert np.allclose(curve["train_loss"], curve_two["train_loss"], rtol=1e-5)
    assert np.allclose(curve["val_loss"], curve_two["val_loss"], rtol=1e-5)
    start = safetensors.torch.load_file("data/models/clean.safetensors")
    for name, value in one.items():
        moved = (value.double() - start[name].double()).norm()
        apart = (two[name].double() - value.double()).norm()
        assert apart <= 1e-5 * moved + 1e-9, f"{name}: {apart:.2g} apart, moved by {moved:.2g}"
