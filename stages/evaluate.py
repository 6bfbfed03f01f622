"""Tables of predictions -> metrics/evaluate.json, the plots and the report. Never loads a model."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.dataset import SPLITS, ImageDataset, load_dataset
from stages.core.errors import InputError, run
from stages.core.params import load_params
from stages.core.predictions import (
    CLEAN,
    PredictionsError,
    classes_of,
    read_examples,
    read_predictions,
    read_table,
    read_transfer,
)
from stages.evaluation import figures
from stages.evaluation import metrics as m
from stages.evaluation.diagnostics import CheckResult, failed, listed, run_table_checks
from stages.evaluation.report import Report, render, terminal
from stages.tracking.stage_logging import log_stage

PROCESSED, PREDICTIONS, REPORT = Path("data/processed"), Path("data/predictions"), Path("data/report.html")
METRICS, PLOTS = Path("metrics"), Path("plots")
SHEETS = ("rejected", "duplicates", "crops")  # drawn by preprocess
PICTURES_PER_CLASS = 6
LIBRARIES = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def main() -> dict[str, Any]:
    """Run the stage in the current folder; return what it writes to metrics/evaluate.json."""
    p = load_params("seed", "attack", "attack_eval.strict", "evaluate")
    store = load_dataset(PROCESSED)
    predictions = {
        model: read_predictions(PREDICTIONS / model)
        for model in figures.MODEL_NAMES
        if (PREDICTIONS / model / "predictions.csv").exists()
    }
    # Pictures made for the other model are within the budget too: they count in the worst case.
    predictions = {
        model: pd.concat([table, read_transfer(PREDICTIONS / "adv", model)], ignore_index=True)
        for model, table in predictions.items()
    }
    if not predictions:
        raise PredictionsError(f"{PREDICTIONS}: expected predictions of {' or '.join(figures.MODEL_NAMES)}, got none")
    training = {
        model: pd.read_csv(PLOTS / f"training_{model}.csv")
        for model in predictions
        if (PLOTS / f"training_{model}.csv").exists()
    }

    images = m.answers(next(iter(predictions.values())))
    intervals = m.ConfidenceIntervals(images["group"], p.evaluate.confidence, p.evaluate.bootstrap, p.seed)
    setting = m.EvaluationContext(p.attack.eps, p.attack.eps_grid, intervals)
    metrics: dict[str, Any] = {"eps": p.attack.eps, "n": len(images), "groups": int(images["group"].nunique())}
    metrics |= m.baselines(images)
    metrics |= {model: m.model_metrics(table, setting) for model, table in predictions.items()}
    smallest = {model: read_table("minimum_eps", PREDICTIONS / model) for model in predictions}
    corrupted = {model: read_table("corruptions", PREDICTIONS / model) for model in predictions}
    for model in predictions:
        metrics[model] |= m.smallest_budgets(smallest[model]) | m.corrupted(corrupted[model])
    if len(predictions) == 2:
        metrics["difference"] = m.difference(*predictions.values(), setting)
    metrics = rounded(metrics)

    diagnostics = {
        model: by_number(
            [
                *(CheckResult(**found) for found in json.loads((PREDICTIONS / model / "diagnostics.json").read_text("utf-8"))),
                *run_table_checks(model, table, p.attack.eps, training.get(model), metrics["majority_rate"]),
            ]
        )
        for model, table in predictions.items()
    }

    by_model = [tables_of(model, table, smallest[model], corrupted[model], setting) for model, table in predictions.items()]
    tables = {name: joined([tables[name] for tables in by_model]) for name in by_model[0]}
    counts = figures.table_of_counts(store.manifest, classes_of(images), SPLITS)
    drawn = {
        "classes": figures.classes(class_pictures(store)),
        "counts": figures.counts(counts),
        "overview": figures.overview(store.manifest, counts.index),
        "training": figures.training(training) if training else None,
        "robustness": figures.robustness(tables["robustness"], metrics["majority_rate"], p.attack.eps, p.attack.norm),
    }
    for model in predictions:
        folder = PREDICTIONS / model / "examples"
        drawn[f"examples_{model}"] = figures.examples(read_examples(folder), folder, p.attack.norm)
    drawn = {name: png for name, png in drawn.items() if png}

    sheets = {name: (PLOTS / f"{name}.png").read_bytes() for name in SHEETS}
    shown = {
        "reliability": figures.reliability(tables["reliability"]),
        "minimum_eps": figures.minimum_eps(tables["minimum_eps"], p.attack.norm),
        "corruptions": figures.corruptions(tables["corruptions"]),
    }

    write_json(METRICS / "evaluate.json", metrics)
    write_json(METRICS / "diagnostics.json", rounded(diagnostics))
    for name, table in tables.items():
        table.to_csv(PLOTS / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    for name, png in drawn.items():
        (PLOTS / f"{name}.png").write_bytes(png)
    page = Report(
        norm=p.attack.norm,
        metrics=metrics,
        data=json.loads((METRICS / "data.json").read_text(encoding="utf-8")),
        counts=counts,
        rejected=pd.read_csv(PROCESSED / "rejected.csv", dtype=str, keep_default_na=False),
        robustness=tables["robustness"],
        same_images=joined([m.same_images_table(model, table, setting) for model, table in predictions.items()]),
        confusion=tables["confusion"],
        per_class=tables["per_class"],
        minimum_eps=tables["minimum_eps"],
        corruptions=tables["corruptions"],
        training=training,
        attacks=attacks_run(predictions, p.attack.norm),
        ensembles=ensembles_run(list(predictions)),
        figures=drawn | sheets | shown,
        settings=settings(p),
        confidence=p.evaluate.confidence,
        suspicious_accuracy=p.evaluate.suspicious_accuracy,
        diagnostics=rounded(diagnostics),
    )
    REPORT.write_text(render(page), encoding="utf-8", newline="\n")
    print(terminal(metrics, f"{100 * p.evaluate.confidence:g} %", p.attack.norm))
    print(listed(diagnostics))
    log_stage("evaluate", p)
    # Last, so that everything is written and the dear stages stay in the cache; DVC then records no result.
    if p.attack_eval.strict and (bad := failed(diagnostics)):
        raise InputError(f"attack_eval.strict: expected no diagnostic that says FAIL, got {', '.join(bad)}")
    return metrics


def tables_of(
    model: str, table: pd.DataFrame, smallest: pd.DataFrame, corrupted: pd.DataFrame, setting: m.EvaluationContext
) -> dict[str, pd.DataFrame]:
    """Name -> the rows of one model in plots/<name>.csv."""
    return {
        "robustness": m.robustness_table(model, table, setting),
        "confusion": m.confusion_table(model, table, setting),
        "per_class": m.per_class_table(model, table, setting),
        "reliability": m.reliability_table(model, table, setting),
        "minimum_eps": m.minimum_eps_table(model, table, smallest, setting),
        "corruptions": m.corruptions_table(model, table, corrupted, setting),
    }


def by_number(findings: list[CheckResult]) -> dict[str, dict[str, Any]]:
    """D1, D2, ..., D27 -> as metrics/diagnostics.json keeps it."""
    return {found.id: found.record() for found in sorted(findings, key=lambda found: int(found.id[1:]))}


def class_pictures(store: ImageDataset) -> dict[str, np.ndarray]:
    """Class -> uint8 (k, H, W, 3) from the training part, spread evenly over it."""
    train = store.indices("train")
    chosen = {}
    for index, name in enumerate(store.classes):
        rows = train[store.labels[train] == index]
        chosen[name] = store.images[rows[np.linspace(0, max(0, len(rows) - 1), min(len(rows), PICTURES_PER_CLASS)).astype(int)]]
    return chosen


def attacks_run(predictions: dict[str, pd.DataFrame], norm: str) -> pd.DataFrame:
    """attack,steps,seed,budgets,models: what attack_eval did, a row for each distinct way."""
    how = ["attack", "steps", "seed", "budgets"]
    table = pd.concat([table.assign(model=model) for model, table in predictions.items()])
    grouped = table[table["attack"] != CLEAN].groupby(["model", *how[:-1]], sort=False)["eps"]
    told = grouped.agg(lambda eps: ", ".join(figures.format_eps(one, norm) for one in sorted(set(eps))))
    return told.rename("budgets").reset_index().groupby(how, sort=False)["model"].agg(", ".join).rename("models").reset_index()


def ensembles_run(models: list[str]) -> list[dict[str, Any]]:
    """What the ensemble of attacks consisted of, for each distinct one."""
    records = [json.loads((PREDICTIONS / model / "ensemble.json").read_text(encoding="utf-8")) for model in models]
    return [record for i, record in enumerate(records) if record not in records[:i]]


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """The models' tables as one; of those without rows only the columns."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def settings(p: Any) -> dict[str, str]:
    """What this stage was told, and the libraries that it used, for the report."""
    return {
        "attack.norm": p.attack.norm,
        "attack.eps": figures.format_eps(p.attack.eps, p.attack.norm),
        "attack.eps_grid": ", ".join(figures.format_eps(eps, p.attack.norm) for eps in p.attack.eps_grid),
        "seed": str(p.seed),
        "evaluate.confidence": f"{p.evaluate.confidence:g}",
        "evaluate.bootstrap": f"{p.evaluate.bootstrap} resamples",
        "evaluate.suspicious_accuracy": f"{p.evaluate.suspicious_accuracy:g}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
    }


def rounded(value: Any) -> Any:
    """The same nested dict with its floats at 6 significant digits, as in the tables: enough, and stable in a diff."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Sorted, indented; refuses NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(main)
