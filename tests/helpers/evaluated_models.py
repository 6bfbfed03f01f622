"""A saved model, its evaluation, and the results of a pipeline around it."""

import json
from pathlib import Path

import yaml

from stages.core.files import md5
from stages.models import classifier
from stages.models.weights import create_model
from stages.serving.evaluated_model import Estimate, EvaluatedModel

SIZE, CLASSES = 32, ("a", "b", "c")
EVALUATED = EvaluatedModel(
    model="adv",
    md5="0",
    crop="cervix",
    synthetic=True,
    norm="linf",
    eps=8 / 255,
    images=12,
    confidence=0.95,
    clean_accuracy=Estimate(0.9, 0.8, 1.0),
    robust_accuracy_worst=Estimate(0.4, 0.3, 0.5),
)


def save_model(file: Path, arch: str = "squeezenet1_1") -> None:
    classifier.save(file, create_model(arch, CLASSES, SIZE, "none", "none", 0))


def write_results(folder: Path, arch: str = "squeezenet1_1") -> None:
    """What read_evaluated_model reads of the model adv: weights, metrics, dvc.lock."""
    for name in ("data/models", "metrics"):
        (folder / name).mkdir(parents=True)
    save_model(folder / "data/models/adv.safetensors", arch)
    accuracies = {}
    for name in ("clean_accuracy", "robust_accuracy_worst"):
        accuracies |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
    evaluation = {"adv": accuracies, "eps": 0.01, "n": 7}
    (folder / "metrics/evaluate.json").write_text(json.dumps(evaluation))
    (folder / "metrics/data.json").write_text(json.dumps({"synthetic": False}))

    def entry(path, digest=""):
        return {"path": path, "md5": digest or md5(folder / path)}

    data = {"crop": "none"}
    evaluate = {"attack": {"norm": "l2"}, "evaluate": {"confidence": 0.9}}
    stages = {
        "preprocess": {
            "outs": [entry("data/processed", "p"), entry("metrics/data.json")],
            "params": {"params.yaml": {"data": data}},
        },
        "attack_eval@adv": {
            "deps": [entry("data/processed", "p"), entry("data/models/adv.safetensors")],
            "outs": [entry("data/predictions/adv", "t")],
        },
        "evaluate": {
            "deps": [entry("data/predictions/adv", "t")],
            "outs": [entry("metrics/evaluate.json")],
            "params": {"params.yaml": evaluate},
        },
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
