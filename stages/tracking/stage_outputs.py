"""What a stage has written: the files that dvc.yaml lists for it, and the numbers in them."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stages.core.files import md5

CALIBRATION = "calibration.csv"  # predictions on validation images are no result of a model
LAST_STAGE = "evaluate"
EVALUATION = Path("metrics/evaluate.json")
HEADLINES = Path("metrics/headlines.json")  # some numbers of metrics/evaluate.json again
UNPREFIXED = (EVALUATION, HEADLINES)  # their numbers are those of the pipeline


def _stages() -> dict[str, Any]:
    return yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


def stage_names() -> list[str]:
    """All stages of dvc.yaml in their order there, ``name@item`` for each item of a matrix."""
    names = []
    for name, specification in _stages().items():
        models = specification.get("matrix", {}).get("model", [])
        names += [f"{name}@{model}" for model in models] or [name]
    return names


def entries(stage: str, *sections: str) -> list[str]:
    """The keys or paths in sections of a stage of dvc.yaml."""
    name, _, model = stage.partition("@")
    specification, found = _stages()[name], []
    for section in sections:
        for entry in specification.get(section, []):
            key = next(iter(entry)) if isinstance(entry, dict) else entry  # {path: options}
            found.append(key.replace("${item.model}", model))
    return found


def output_files(stage: str) -> list[Path]:
    """The files that a stage has written; of a folder, tables and images stand for the rest."""
    files: set[Path] = set()
    for path in map(Path, entries(stage, "outs", "metrics", "plots")):
        files.update([*path.glob("**/*.csv"), *path.glob("**/*.png")] if path.is_dir() else [path])
    return sorted(file for file in files if file.is_file())


def content_digest(stage: str) -> str:
    """A digest of the names and contents of all that a stage has written."""
    lines = [f"{file.as_posix()} {md5(file)}\n" for file in output_files(stage)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Epoch -> name -> number of all metrics in a file; those of no single epoch are at 0."""
    if file.suffix == ".json":
        return {0: _json_metrics(file)}
    if file.suffix != ".csv" or file.name == CALIBRATION:
        return {}
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if "epoch" in table:
        return _training_metrics(table)
    is_predictions = {"attack", "eps", "label", "prediction"} <= {*table.columns}
    return {0: _accuracies(table)} if is_predictions else {}


def epoch_metrics(row: Mapping[str, Any], section: str = "epoch") -> dict[str, float]:
    """The numbers of one epoch of a training, named ``section/column``; an empty cell is none."""
    metrics = {}
    for key, value in row.items():
        if key not in ("epoch", "chosen") and value not in ("", None):
            metrics[f"{section}/{key}"] = float(value)
    return metrics


def _training_metrics(table: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Every epoch, and at 0 what was measured on validation images at the one that was chosen."""
    metrics = {}
    for row in table.to_dict("records"):
        metrics[int(row["epoch"])] = epoch_metrics(row)
        if row["chosen"] == "1":
            validation = {key: row[key] for key in row if key.startswith("val_")}
            metrics[0] = {"model/epoch": float(row["epoch"]), **epoch_metrics(validation, "model")}
    return metrics


def _json_metrics(file: Path) -> dict[str, float]:
    """DVC's names ``a.b.c``, but with the slash that makes a section in MLflow: ``a/b.c``."""
    table = pd.json_normalize(json.loads(file.read_text(encoding="utf-8")))
    prefix = "" if file in UNPREFIXED else f"{file.stem}."
    metrics = {}
    for key, value in table.select_dtypes("number").iloc[0].items():
        name = re.sub(r"[^\w./ -]", _in_words, f"{prefix}{key}")
        metrics[name.replace(".", "/", 1)] = float(value)
    return metrics


def _in_words(sign: re.Match[str]) -> str:
    """A sign that MLflow refuses in names, as words, which keep the class <CIN2 from >CIN2."""
    return f" {unicodedata.name(sign[0], f'U {ord(sign[0]):04X}').lower()} "


def _accuracies(table: pd.DataFrame) -> dict[str, float]:
    """The accuracy under each attack: ``robust_accuracy/pgd.eps_8_255`` or ``pgd.l2_eps_0.5``."""
    attack, eps = table["attack"], table["eps"].astype(float)
    if "target" in table:  # of a transfer attack: the model that is attacked
        attack = attack + "_to_" + table["target"]
    correct = table["prediction"] == table["label"]
    metrics = {}
    for (name, norm, size), hits in correct.groupby([attack, table["norm"], eps]):
        budget = f"eps_{size * 255:.4g}_255" if norm == "linf" else f"{norm}_eps_{size:.4g}"
        key = f"robust_accuracy/{name}.{budget}" if size else "clean_accuracy"
        metrics[key] = float(hits.mean())
    return metrics
