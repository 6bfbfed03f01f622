"""The stage attack_eval from files to files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages import attack_eval
from stages.attacks import gradient
from stages.core.checkpoints import Checkpoint
from stages.core.norms import NORMS
from stages.core.paths import PREDICTIONS, PROCESSED, weights_path
from stages.core.predictions import select, validate
from stages.core.tables import DESCRIPTOR, read_table, table_names
from stages.measurements.registry import MEASUREMENTS
from stages.models import classifier
from stages.models.architectures import ModelError
from stages.models.classifier import Classifier
from tests.helpers.datasets import toy_dataset, write_dataset
from tests.helpers.params import write_params
from tests.helpers.projects import set_params
from tests.helpers.reports import ATTACK_CHECKS, MODEL_CHECKS
from tests.helpers.repository import ROOT

CLASSES, SIZE, IMAGES = ("a", "b", "c"), 32, 9  # images in each of val and test
EPS = {"linf": 0.03, "l2": 0.5}
SMALL = {
    "attack_eval.noise_draws": 1,
    "attack_eval.bim_steps": 1,
    "attack_eval.pgd_steps": 2,
    "attack_eval.curve_steps": 1,
    "attack_eval.subset": 4,
    "attack_eval.aa_steps": 2,
    "attack_eval.aa_queries": 2,
    "attack_eval.min_eps_rounds": 1,
    "attack_eval.examples": 2,
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.tracking": False,
}


def threat(norm: str) -> dict:
    eps = EPS[norm]
    return {"attack.norm": norm, "attack.eps": eps, "attack.eps_grid": [eps / 3, 2 * eps]}


def new_model(arch="shufflenet_v2_x0_5", classes=CLASSES, size=SIZE, seed=0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(arch, classes, size)


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a dataset and both models; data/predictions/adv is what the stage writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_params(tmp_path / "params.yaml", **SMALL, **threat("linf"))
    write_dataset(toy_dataset(images=4 * IMAGES, size=SIZE), PROCESSED)
    for seed, name in enumerate(("clean", "adv")):
        classifier.save(weights_path(name), new_model(seed=seed))
    return tmp_path


def change_params(**changes) -> None:
    set_params(Path("params.yaml"), **changes)


@pytest.mark.parametrize("norm", NORMS)
def test_stage_writes_every_table_within_the_budget(norm, project):
    change_params(**threat(norm))
    folder = PREDICTIONS / "adv"
    rows = attack_eval.main("adv")
    first = contents(folder)
    expected = [table.name for m in MEASUREMENTS for table in m.tables]
    expected = [name for name in expected if name not in ("second_norm", "smoothing")]
    assert table_names(folder) == expected
    tables = {name: read_table(folder, name) for name in expected}
    for name, factor in (("predictions", 2), ("calibration", 1), ("transfer", 1)):
        table = tables[name]
        assert (table[norm] <= table["eps"] * (1 + 1e-4) + 1e-6).all()
        assert table["eps"].max() == pytest.approx(factor * EPS[norm], rel=1e-5)
        assert table[norm].max() > 0
    read = validate(tables["predictions"])
    pd.testing.assert_frame_equal(rows, read, check_dtype=False, rtol=1e-5)

    split = toy_dataset(images=4 * IMAGES).manifest.set_index("path")["split"]
    counts = {"examples": 2, "minimum_eps": 4}
    for name, table in tables.items():
        if "path" in table:
            assert set(split[table["path"]]) == {"val" if name == "calibration" else "test"}
            assert table["path"].nunique() == counts.get(name, IMAGES)
    assert set(tables["calibration"]["attack"]) == {"none", "pgd"}
    steps = rows[rows["attack"] == "pgd"].groupby("eps")["steps"].unique().explode()
    assert steps.tolist() == [1, 2, 1], "at the other ε of the grid fewer"
    assert set(tables["model_checks"]["check"]) == set(MODEL_CHECKS), "the report reads these"
    # float32 confirms what bfloat16 found; the tests compute in float32. Square's power is measured
    # where images are known to fall.
    checks = set(tables["attack_checks"]["check"]) - {"square_power"}
    assert checks == set(ATTACK_CHECKS) - {"float32"}
    assert {f"examples/0_gradient_{model}.png" for model in ("clean", "adv")} < set(first)
    for example in tables["examples"].itertuples():
        files = (folder / example.original, folder / example.adversarial)
        x, x_adv = (torch.from_numpy(np.array(Image.open(file))) / 255 for file in files)
        assert 0 < NORMS[norm].size((x_adv - x)[None]) <= example.eps * (1 + 1e-4)
    assert {"universal.png", "ensemble.json", "model.json", DESCRIPTOR} < set(first)
    assert json.loads(first["model.json"])["precision"] == "float32"
    assert not list(Path(".ckpt").rglob("last.pt"))


def test_full_ensemble_second_norm_surrogate_smoothing_and_all_images_on_demand(project):
    classifier.save(weights_path("surrogate"), new_model("resnet18"))
    change_params(
        **{
            "attack.second_eps": EPS["l2"],
            "attack_eval.ensemble": "full",
            "attack_eval.surrogate": str(weights_path("surrogate")),
            "attack_eval.subset": 1000,
            "attack_eval.smoothing_sigma": 0.1,
        }
    )
    rows, folder = attack_eval.main("clean"), PREDICTIONS / "clean"
    second = read_table(folder, "second_norm")
    assert set(second["norm"]) == {"l2"}
    assert (second["l2"] <= EPS["l2"] * (1 + 1e-4)).all()
    assert second["linf"].max() > 2 * EPS["linf"] >= rows["linf"].max() - 1e-6
    clean = select(read_table(folder, "predictions")).drop(columns="norm")
    pd.testing.assert_frame_equal(select(second).drop(columns="norm"), clean)
    assert set(rows["attack"]) - set(second["attack"]) == {"universal", "surrogate"}
    assert "aa-k3" in set(second["attack"])
    config = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
    assert (config["name"], config["attacks"][-2:]) == ("aa-k3", ["fab_t", "square"])
    assert len(read_table(folder, "minimum_eps")) == IMAGES
    assert set(read_table(folder, "smoothing")["radius"]) == {0, 0.05, 0.1, 0.15}


class Interruption(BaseException):
    """Ends a run as a signal does."""


def test_interrupted_stage_resumes_with_identical_files_and_repeats_no_step(project, monkeypatch):
    attack_eval.main("adv")
    expected, save, finished = contents(PREDICTIONS / "adv"), Checkpoint.save, []

    def interrupted_save(checkpoint, state):
        save(checkpoint, state)
        finished.append(list(state))
        if len(state) in (4, 30):
            raise Interruption

    monkeypatch.setattr(Checkpoint, "save", interrupted_save)
    for _ in range(2):
        with pytest.raises(Interruption):
            attack_eval.main("adv")
    (PREDICTIONS / "adv/model.json").unlink()
    (PREDICTIONS / "adv/second_norm.csv").write_text("of a run with other parameters")
    attack_eval.main("adv")
    assert contents(PREDICTIONS / "adv") == expected
    steps = finished[-1]
    assert len(steps) > 40
    assert finished == [steps[: i + 1] for i in range(len(steps))]


def test_gradient_step_of_pgd_is_six_frames_below_the_stage(project, monkeypatch):
    """Whoever debugs an attack sees on a screen how it was reached."""

    def stop(*arguments):
        raise Interruption

    monkeypatch.setattr(gradient, "loss_and_gradient", stop)
    with pytest.raises(Interruption) as stopped:
        attack_eval.main("clean")
    functions = [frame.name for frame in stopped.traceback]
    assert functions[-2:] == ["pgd", "stop"]
    assert len(functions[functions.index("main") + 1 : -1]) <= 6


@pytest.mark.parametrize("name", ["clean", "surrogate"])
def test_model_that_does_not_fit_is_refused_by_name(name, project):
    change_params(**{"attack_eval.surrogate": str(weights_path("surrogate"))})
    for model in ({"size": 64}, {"classes": ("a", "c", "b")}):
        classifier.save(weights_path(name), new_model(**model))
        with pytest.raises(ModelError, match=rf"{name}\.safetensors: expected a model (for|of)"):
            attack_eval.main("clean")


def overflowing_model() -> Classifier:
    """Its weights are finite, its logits aren't."""
    model = new_model("resnet18")
    with torch.no_grad():
        model.backbone.fc.weight.fill_(3e38)
    return model


def test_model_that_answers_with_nan_is_refused(project):
    classifier.save(weights_path("clean"), overflowing_model())
    with pytest.raises(ModelError, match=r"expected finite logits of the model, got \[.*(inf|nan)"):
        attack_eval.main("clean")
    assert not (PREDICTIONS / "clean").exists()


def run_stage(model: str, devices: int) -> subprocess.CompletedProcess:
    change_params(**{"runtime.devices": devices})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.attack_eval", model]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_two_processes_write_what_a_single_process_writes(project):
    results = []
    for devices in (1, 2):
        done = run_stage("adv", devices)
        assert done.returncode == 0, done.stderr
        results.append(contents(PREDICTIONS / "adv"))
    single, double = results
    assert single.keys() == double.keys()
    for file, content in single.items():
        if file.endswith(".csv"):  # a batch of another size rounds margins near 0 otherwise
            tables = (pd.read_csv(io.BytesIO(text)) for text in (content, double[file]))
            pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)
        else:
            assert content == double[file], file
    assert not list(Path(".ckpt").rglob("last.pt"))


@pytest.mark.slow
def test_error_in_one_of_two_processes_ends_both_with_one_message(project):
    classifier.save(weights_path("clean"), overflowing_model())
    done = run_stage("clean", 2)
    assert done.returncode == 1
    assert done.stderr.count("expected finite logits of the model") == 1
    assert "Traceback" not in done.stderr
