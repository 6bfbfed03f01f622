"""What a stage has written, as numbers by name, read from the files that dvc.yaml lists for it."""

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from stages.core.files import md5

CALIBRATION = "calibration.csv"  # predictions on validation images: none of a model's results
LAST_STAGE = "evaluate"  # its numbers are the pipeline's, and go by their plain names
RESULTS = ("outs", "metrics", "plots")  # where dvc.yaml lists what a stage writes

Metrics = dict[tuple[str, int], float]  # (metric, step) -> value; the step is the epoch, or 0


def _dvc_yaml() -> dict[str, Any]:
    return yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


def dvc_entries(stage: str, *sections: str) -> list[str]:
    """Keys or paths in these sections of a stage of dvc.yaml, there written as ``path`` or ``path: {options}``."""
    stages, (name, _, item) = _dvc_yaml(), stage.partition("@")
    if name not in stages:
        raise ValueError(f"dvc.yaml: expected one of the stages {', '.join(stages)}, got {stage!r}")
    listed = [
        key
        for section in sections
        for e in stages[name].get(section, ())
        for key in (e if isinstance(e, dict) else [e])
    ]
    return [re.sub(r"\$\{item(\.\w+)?\}", item, key) for key in listed]


def stage_names() -> list[str]:
    """Every stage of dvc.yaml, ``name@item`` for each item of a matrix (of one key); producers before consumers."""
    names = []
    for name, spec in _dvc_yaml().items():
        names += (
            [f"{name}@{i}" for items in spec["matrix"].values() for i in items]
            if "matrix" in spec
            else [name]
        )
    needs = {
        n: [m for m in names if set(dvc_entries(m, *RESULTS)) & set(dvc_entries(n, "deps"))]
        for n in names
    }
    return list(TopologicalSorter(needs).static_order())


def output_files(stage: str) -> dict[Path, str]:
    """Files that a stage has written, with digests; of a folder its tables and images, which stand for the rest."""
    paths = [Path(path) for path in dvc_entries(stage, *RESULTS)]
    files = [
        f
        for p in paths
        for f in (
            [*p.glob("*.csv"), *p.glob("*.png"), *p.glob("examples/*.png")] if p.is_dir() else [p]
        )
    ]
    return {file: md5(file) for file in sorted(files) if file.is_file()}


def digest_files(files: Mapping[Path, str]) -> str:
    """One digest for all that a stage has written."""
    return hashlib.sha256(
        "".join(f"{path.as_posix()} {md5}\n" for path, md5 in files.items()).encode()
    ).hexdigest()[:16]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def epoch_metrics(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """The numbers in a training's rows; an empty cell is none."""
    cells = [
        (key, row)
        for row in rows
        for key in row
        if key not in ("epoch", "chosen") and row[key] not in ("", None)
    ]
    return {(f"epoch/{key}", int(row["epoch"])): float(row[key]) for key, row in cells}


def _json_metrics(value: Any, name: str) -> Metrics:
    """``{"a": {"b": {"c": 1}}}`` -> ``a/b.c``: DVC's name for it, but for the slash that makes a section in MLflow's charts."""
    if isinstance(value, dict):
        join = "." if "/" in name else "/" if name else ""
        return {
            key: number
            for part in value
            for key, number in _json_metrics(value[part], f"{name}{join}{part}").items()
        }
    return (
        {(name, 0): float(value)}
        if isinstance(value, int | float) and not isinstance(value, bool)
        else {}
    )


def _table_metrics(rows: list[dict[str, str]]) -> Metrics:
    """Of a training's curves every epoch, and once more the validation of the chosen one; of predictions the accuracies."""
    if rows and "epoch" in rows[0]:
        chosen = [row for row in rows if row.get("chosen", "").lower() in ("1", "true")]
        once = {
            (f"model/{k}", 0): float(row[k])
            for row in chosen
            for k in row
            if k.startswith(("val_", "epoch")) and row[k]
        }
        return epoch_metrics(rows) | once
    hits: dict[str, list[bool]] = defaultdict(list)
    if rows and {"attack", "eps", "label", "prediction"} <= rows[0].keys():
        for row in rows:
            attack = (
                f"{row['attack']}_to_{row['target']}" if "target" in row else row["attack"]
            )  # transfer.csv: both models
            name = f"robust_accuracy/{attack}.eps_{float(row['eps']) * 255:.4g}_255"
            hits[name if float(row["eps"]) else "clean_accuracy"].append(
                row["prediction"] == row["label"]
            )
    return {(name, 0): sum(hit) / len(hit) for name, hit in hits.items()}


def read_metrics(path: Path) -> Metrics:
    """The metrics in a file; none in one that isn't a table or JSON."""
    metrics: Metrics = {}
    if path.suffix == ".json":
        metrics = _json_metrics(
            json.loads(path.read_text(encoding="utf-8")),
            "" if path.stem == LAST_STAGE else path.stem,
        )
    elif path.suffix == ".csv" and path.name != CALIBRATION:
        metrics = _table_metrics(rows_of(path))
    # A class may be called CIN2+; MLflow refuses the plus.
    return {
        (re.sub(r"[^\w./ -]", "_", name), step): value for (name, step), value in metrics.items()
    }
