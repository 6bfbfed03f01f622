"""A saved model, and the files of a whole pipeline around it."""

import json
import shutil

import pytest
import yaml

from stages.core.files import md5
from stages.models import classifier
from stages.models.initialization import create_model
from tests.helpers.serving_requests import SIZE


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "adv.safetensors"
    classifier.save(file, create_model("squeezenet1_1", ("a", "b", "c"), SIZE, "none", "none", 0))
    return file


@pytest.fixture
def finished_pipeline(tmp_path, weights, monkeypatch):
    """The files that read_card reads, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/models", "metrics"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(weights, "data/models/adv.safetensors")
    metrics = {
        f"{name}{end}": 0.5
        for name in ("clean_accuracy", "robust_accuracy_worst")
        for end in ("", "_low", "_high")
    }
    (tmp_path / "metrics/evaluate.json").write_text(
        json.dumps({"adv": metrics, "eps": 0.01, "n": 7})
    )
    (tmp_path / "metrics/data.json").write_text(json.dumps({"synthetic": False}))

    def entry(path, digest=""):
        return {"path": path, "md5": digest or md5(tmp_path / path)}

    stages = {
        "preprocess": {
            "outs": [entry("data/processed", "p"), entry("metrics/data.json")],
            "params": {"params.yaml": {"data": {"crop": "none"}}},
        },
        "attack_eval@adv": {
            "deps": [entry("data/processed", "p"), entry("data/models/adv.safetensors")],
            "outs": [entry("data/predictions/adv", "t")],
        },
        "evaluate": {
            "deps": [entry("data/predictions/adv", "t")],
            "outs": [entry("metrics/evaluate.json")],
            "params": {"params.yaml": {"attack": {"norm": "l2"}, "evaluate": {"confidence": 0.9}}},
        },
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return tmp_path
