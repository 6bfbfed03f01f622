"""The stage attack_eval from files to files, in both norms, and what it says of files that don't fit."""

import dataclasses
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
import yaml
from PIL import Image

from stages import attack_eval
from stages.attacks import corruptions, minimum_eps, runner
from stages.core.errors import InputError
from stages.core.predictions import read_examples, read_predictions, read_table, read_transfer
from stages.models import classifier
from stages.models.classifier import ModelError
from stages.models.weights import create_model
from tests.helpers.datasets import toy_dataset
from tests.helpers.repository import ROOT

CLASSES, SIZE = ("a", "b", "c"), 32
SMALL = {
    "attack": {"eps": 0.03, "eps_grid": [0.01, 0.03]},
    "attack_eval": {
        "noise_draws": 1,
        "bim_steps": 1,
        "pgd_steps": 2,
        "curve_steps": 1,
        "subset": 6,
        "aa_steps": 2,
        "aa_queries": 2,
        "min_eps_rounds": 1,
        "examples": 2,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "tracking": False},
}


def write_toy_dataset(dataset) -> None:
    folder = Path("data/processed")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", dataset.images)
    dataset.manifest.to_csv(folder / "manifest.csv", index=False)


def write_model(name="clean", arch="resnet18", classes=CLASSES, size=SIZE, seed=0) -> None:
    classifier.save(
        Path(f"data/models/{name}.safetensors"),
        create_model(arch, classes, size, "none", "none", seed),
    )


def set_params(**sections) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for section, values in sections.items():
        params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Path("params.yaml").write_text(
        (ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    set_params(**SMALL)
    write_toy_dataset(toy_dataset(images=48, size=SIZE))
    write_model()
    return tmp_path


@pytest.mark.parametrize(
    "threat", [{"norm": "linf"}, {"norm": "l2", "eps": 0.5, "eps_grid": [0.2, 0.5]}]
)
def test_attack_eval_writes_everything_within_eps_and_reproducibly(threat, project):
    write_model("adv", seed=1)
    set_params(attack=threat)
    attack_eval.main("adv")
    folder = Path("data/predictions/adv")
    table = read_predictions(folder)
    distance = table[threat["norm"]]
    assert (distance <= table["eps"] * (1 + 1e-4) + 1e-6).all()
    assert distance.max() > 0
    assert {"none", "fgsm", "pgd", "apgd", "universal"} <= set(table["attack"])
    assert set(read_transfer(folder, "clean")["attack"]) == {"transfer", "universal_transfer"}
    calibration = read_predictions(
        folder, "calibration"
    )  # of the validation split, under the same threat model
    assert not set(calibration["path"]) & set(table["path"])
    assert calibration.groupby("attack")["path"].nunique().to_dict() == {"none": 12, "pgd": 12}
    assert (calibration[threat["norm"]] <= calibration["eps"] * (1 + 1e-4) + 1e-6).all()
    assert (
        len(read_table("minimum_eps", folder)) == 6 < len(read_transfer(folder, "clean")) == 2 * 12
    )
    assert set(read_table("corruptions", folder)["severity"]) == {1, 2, 3}
    assert len(read_table("gradients", folder)) == 12
    assert len(read_examples(folder / "examples")) == 2
    gradients = {
        f"{number}_gradient_{model}.png" for number in (0, 1) for model in ("clean", "adv")
    }
    assert gradients <= {file.name for file in (folder / "examples").iterdir()}
    assert Image.open(folder / "universal.png").size == (SIZE, SIZE)
    assert not (folder / "second_norm.csv").exists()
    config = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
    assert (config["name"], config["target_classes"], config["iterations"]) == ("apgd", 2, 2)
    others = table[~table["attack"].isin(["apgd", "transfer"])]
    survivors = (
        others.groupby("path").apply(lambda rows: (rows["prediction"] == rows["label"]).all()).sum()
    )
    assert config["images"] == survivors >= config["square_remaining"] == config["square_images"]
    assert {"D1", "D24"} <= {
        check["id"]
        for check in json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"))
    }
    assert not list(Path(".ckpt").rglob("last.pt"))
    before = contents(folder)
    attack_eval.main("adv")
    assert contents(folder) == before


def test_second_norm_and_surrogate_are_attacked_within_their_budgets(project):
    write_model("surrogate", arch="squeezenet1_1", seed=2)
    set_params(
        attack={"second_eps": 0.5}, attack_eval={"surrogate": "data/models/surrogate.safetensors"}
    )
    attack_eval.main("clean")
    folder = Path("data/predictions/clean")
    second, table = read_predictions(folder, "second_norm"), read_predictions(folder)
    assert {"fgsm", "pgd", "apgd"} <= set(second["attack"])
    assert set(second["eps"]) == {0.0, 0.5}
    assert 0.03 < second["l2"].max() <= 0.5 * (1 + 1e-4)
    assert (table["linf"] <= 0.03 * (1 + 1e-4)).all()
    clean = [t[t["attack"] == "none"].reset_index(drop=True) for t in (table, second)]
    pd.testing.assert_frame_equal(*clean)
    assert (table["attack"] == "surrogate").sum() == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"surrogate": "missing.safetensors"},
            r"missing\.safetensors: expected a model that this pipeline saved",
        ),
        (
            {"surrogate": "data/models/other.safetensors"},
            r"other\.safetensors: expected a model for 32 pixels, got 64",
        ),
        (
            {"surrogate": "data/models/names.safetensors"},
            r"names\.safetensors: expected a model of the classes a, b, c, got x",
        ),
    ],
)
def test_surrogate_that_does_not_fit_is_refused_by_name(change, message, project):
    write_model("other", size=64)
    write_model("names", classes=("x", "y"))
    set_params(attack_eval=change)
    with pytest.raises(ModelError, match=message):
        attack_eval.main("clean")


def run_stage(model: str, devices: int, **environment: str) -> subprocess.CompletedProcess:
    set_params(runtime={"devices": devices})
    return subprocess.run(
        [sys.executable, "-m", "stages.attack_eval", model],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_write_what_a_single_process_writes(project):
    write_model("adv", seed=1)
    results = []
    for devices in (1, 2):
        done = run_stage("adv", devices)
        assert done.returncode == 0, done.stderr
        results.append(contents(Path("data/predictions/adv")))
    single, double = results
    assert single.keys() == double.keys()
    for file, content in single.items():
        if (
            file.suffix == ".csv"
        ):  # a batch of another size rounds the last digit of a margin near 0 otherwise
            tables = (pd.read_csv(io.BytesIO(text)) for text in (content, double[file]))
            pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)
        else:
            assert content == double[file], file
    assert not list(Path(".ckpt").rglob("last.pt"))


@pytest.mark.slow
def test_error_in_one_of_two_processes_ends_both_with_one_message(project):
    model = create_model("resnet18", CLASSES, SIZE, "none", "none", 0)
    with torch.no_grad():
        model.backbone.fc.weight.fill_(3e38)
    classifier.save(Path("data/models/clean.safetensors"), model)
    done = run_stage("clean", 2)
    assert done.returncode == 1
    assert done.stderr.count("expected finite logits of the model") == 1
    assert "Traceback" not in done.stderr


def test_subset_larger_than_the_test_split_is_the_whole_split(project):
    set_params(attack_eval={"subset": 1000})
    images = attack_eval.main("clean")["path"].nunique()
    assert len(read_table("minimum_eps", Path("data/predictions/clean"))) == images


def test_full_ensemble_is_that_of_autoattack(project):
    set_params(attack_eval={"ensemble": "full"})
    table = attack_eval.main("clean")
    assert (table["attack"] == "aa-k3").sum() == table["path"].nunique()
    config = json.loads(Path("data/predictions/clean/ensemble.json").read_text(encoding="utf-8"))
    assert config["attacks"] == ["apgd_ce", "apgd_dlr", "apgd_margin", "fab_t", "square"]


def test_model_that_answers_with_nan_is_refused_before_any_attack(project, monkeypatch):
    model = create_model("resnet18", CLASSES, SIZE, "none", "none", 0)
    with torch.no_grad():  # finite, but their products are not
        model.backbone.fc.weight.fill_(3e38)
    classifier.save(Path("data/models/clean.safetensors"), model)
    monkeypatch.setattr(runner, "attack_remaining", None)
    with pytest.raises(ModelError, match=r"expected finite logits of the model, got \[.*(inf|nan)"):
        attack_eval.main("clean")


def test_interrupted_stage_repeats_no_finished_step(project, monkeypatch):
    write_model("adv", seed=1)
    expected = attack_eval.main("adv")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attack_eval, "select_examples", interrupt)
        with pytest.raises(KeyboardInterrupt):
            attack_eval.main("adv")
    with monkeypatch.context() as patch:  # only the example images are left to be made
        for name in ("attack_remaining", "clean_result"):
            patch.setattr(runner, name, interrupt)
        patch.setattr(minimum_eps, "bisect_eps", interrupt)
        patch.setattr(corruptions, "corrupt", interrupt)
        patch.setattr(attack_eval, "run_sanity_checks", interrupt)
        pd.testing.assert_frame_equal(attack_eval.main("adv"), expected)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"classes": ("a", "b")}, "expected a model of the classes a, b, c, got a, b"),
        ({"classes": ("a", "c", "b")}, "expected a model of the classes a, b, c, got a, c, b"),
        ({"size": 40}, "expected a model for 32 pixels, got 40"),
    ],
)
def test_model_of_another_dataset_is_refused(model, error, project):
    write_model(**model)
    with pytest.raises(ModelError, match=rf"clean\.safetensors: {error}"):
        attack_eval.main("clean")


def test_model_file_with_layers_of_another_architecture_is_refused(project):
    other = create_model("squeezenet1_1", CLASSES, SIZE, "none", "none", 0)
    other.arch = "resnet18"
    classifier.save(Path("data/models/clean.safetensors"), other)
    with pytest.raises(
        ModelError, match=r"clean\.safetensors: expected a model that this pipeline saved"
    ):
        attack_eval.main("clean")


def test_missing_model_is_refused(project):
    with pytest.raises(
        ModelError, match=r"adv\.safetensors: expected a model that this pipeline saved"
    ):
        attack_eval.main("adv")


def test_empty_test_split_is_refused(project):
    dataset = toy_dataset(images=48, size=SIZE)
    write_toy_dataset(
        dataclasses.replace(
            dataset, manifest=dataset.manifest.replace({"split": {"test": "train"}})
        )
    )
    with pytest.raises(
        InputError,
        match=r"manifest\.csv: split: expected images in train, val, test, got train, val",
    ):
        attack_eval.main("clean")


def test_stronger_attacks_are_tried_on_what_is_robust_at_the_main_eps(project, monkeypatch):
    """Not only on what is robust at every eps of the grid."""
    seen = []

    def record(target, subset, robust, eps, p):
        seen.append(robust)
        return []

    monkeypatch.setattr(attack_eval, "run_sanity_checks", record)
    set_params(attack={"eps": 0.001, "eps_grid": [0.001, 0.4]})
    table = attack_eval.main("clean")
    within = table[table["eps"] <= 0.001]
    expected = (within["label"] == within["prediction"]).groupby(within["path"]).all()
    everywhere = (table["label"] == table["prediction"]).groupby(table["path"]).all()
    assert seen[0].sum() == expected.sum() > everywhere.sum()
