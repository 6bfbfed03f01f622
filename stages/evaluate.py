"""Compute metrics, plots and the report from the tables of predictions; no model is loaded.

Run: python -m stages.evaluate

Reads data/processed, data/predictions, plots/training_*.csv, metrics/data.json and the figures of preprocess.  Writes
metrics/evaluate.json, metrics/diagnostics.json, plots/, data/report.html and data/model_card.md.
"""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from stages.core.budgets import format_budget, format_eps
from stages.core.checks import CheckResult
from stages.core.dataset import ImageDataset, is_transformation_zone, load_dataset
from stages.core.errors import InputError
from stages.core.files import read_csv, read_json, round_floats, write_bytes, write_csv, write_json
from stages.core.params import (
    AttackEvalParams,
    AttackParams,
    DataParams,
    EvaluateParams,
    ModelParams,
    Seeded,
    TrainAdvParams,
    TrainCleanParams,
)
from stages.core.params_file import flatten, load_stage_params
from stages.core.paths import METRICS, MODELS, PLOTS, PREDICTIONS, PROCESSED, REPORT, history_path
from stages.core.predictions import (
    CLEAN,
    Ensemble,
    ModelDescription,
    read_checks,
    read_ensemble,
    read_examples,
    read_model_description,
    read_predictions,
    read_table,
    read_transfer,
    validate_predictions,
)
from stages.core.processes import run_cli
from stages.evaluation import figures, image_figures, model_card
from stages.evaluation.conformal import conformal_metrics
from stages.evaluation.diagnostics import failed_checks, format_checks, run_table_checks
from stages.evaluation.formatting import attack_label
from stages.evaluation.intervals import ConfidenceIntervals
from stages.evaluation.metrics import (
    EvaluationContext,
    baselines,
    corruption_metrics,
    distortion_metrics,
    gradient_metrics,
    min_eps_metrics,
    model_metrics,
    paired_difference,
    second_norm_metrics,
)
from stages.evaluation.report import Report, render
from stages.evaluation.selection import EPS_TOLERANCE, select_predictions
from stages.evaluation.summary import cluster_name, terminal_summary
from stages.evaluation.tables import plot_tables
from stages.tracking.stage_logging import log_stage

MODEL_CARD = REPORT.with_name("model_card.md")
SHEETS = ("rejected", "duplicates", "crops")  # figures of preprocess
EXAMPLES_PER_CLASS = 6
LIBRARIES = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


class Params(Seeded):
    """What this stage reads of params.yaml: all that changes a result, for the report."""

    data: DataParams
    model: ModelParams
    attack: AttackParams
    train_clean: TrainCleanParams
    attack_eval: AttackEvalParams
    train_adv: TrainAdvParams
    evaluate: EvaluateParams


@dataclass(frozen=True)
class ModelInputs:
    """What attack_eval and training wrote about one model.

    Attributes:
        predictions: with the rows of the transfer attack.
        calibration: calibration.csv, of the validation images.
        minimum_eps: minimum_eps.csv.
        corruptions: corruptions.csv.
        gradients: gradients.csv.
        second_norm: second_norm.csv, where a second budget was set.
        training: the training curve, where there is one.
        checks: the sanity checks that need the model.
        ensemble: ensemble.json.
        description: model.json.
        examples: examples.csv.
    """

    predictions: pd.DataFrame
    calibration: pd.DataFrame
    minimum_eps: pd.DataFrame
    corruptions: pd.DataFrame
    gradients: pd.DataFrame
    second_norm: pd.DataFrame | None
    training: pd.DataFrame | None
    checks: list[CheckResult]
    ensemble: Ensemble
    description: ModelDescription
    examples: pd.DataFrame


def main() -> dict[str, Any]:
    """Run the stage in the current folder; returns what it writes to metrics/evaluate.json."""
    p = load_stage_params(Params)
    dataset, inputs = load_dataset(PROCESSED), load_inputs()
    data = read_json(METRICS / "data.json", "preprocess", dict[str, Any])
    images = select_predictions(next(iter(inputs.values())).predictions)
    intervals = ConfidenceIntervals(
        images["group"], p.evaluate.confidence, p.evaluate.bootstrap, p.seed
    )
    context = EvaluationContext(p.attack.eps, p.attack.eps_grid, intervals)

    tables = compute_tables(inputs, context)
    metrics = compute_metrics(inputs, images, tables, context)
    checks = compute_checks(inputs, tables, p.attack.eps, metrics["majority_rate"])
    drawn = draw_figures(inputs, dataset, tables, chart_context(metrics, data, p), p)
    charts = draw_report_charts(tables, chart_context(metrics, data, p))
    report = make_report(inputs, dataset, tables, metrics, checks, data, drawn | charts, p)

    write_json(METRICS / "evaluate.json", metrics)
    write_json(METRICS / "diagnostics.json", checks)
    for name, table in tables.items():
        write_csv(PLOTS / f"{name}.csv", table)
    for name, png in drawn.items():
        write_bytes(PLOTS / f"{name}.png", png)
    write_bytes(REPORT, render(report).encode())
    write_bytes(MODEL_CARD, model_card.render(report).encode())
    print(terminal_summary(metrics, report.level, p.attack.norm))
    print(format_checks(checks))
    log_stage("evaluate", p)
    # Last, so that everything is written and the expensive stages stay in the cache; DVC then records no result.
    if p.evaluate.strict and (failed := failed_checks(checks)):
        raise InputError(
            f"evaluate.strict: expected no diagnostic that says FAIL, got {', '.join(failed)}"
        )
    return metrics


def load_inputs() -> dict[str, ModelInputs]:
    """Model -> what was written about it, for the models that have predictions. Raises InputError when none has."""
    inputs = {}
    for model in MODELS:
        folder = PREDICTIONS / model
        if (folder / "predictions.csv").exists():
            # Adversarial examples of the other model are within the budget too: they count in the worst case.
            tables = [read_predictions(folder), read_transfer(PREDICTIONS / "adv", model)]
            history = history_path(model)
            inputs[model] = ModelInputs(
                predictions=validate_predictions(pd.concat(tables, ignore_index=True), str(folder)),
                calibration=read_predictions(folder, "calibration"),
                minimum_eps=read_table("minimum_eps", folder),
                corruptions=read_table("corruptions", folder),
                gradients=read_table("gradients", folder),
                second_norm=read_predictions(folder, "second_norm")
                if (folder / "second_norm.csv").exists()
                else None,
                training=read_csv(history, f"train_{model}", ()) if history.exists() else None,
                checks=read_checks(folder),
                ensemble=read_ensemble(folder),
                description=read_model_description(folder),
                examples=read_examples(folder / "examples"),
            )
    if not inputs:
        raise InputError(f"{PREDICTIONS}: expected predictions of {' or '.join(MODELS)}, got none")
    return inputs


def compute_metrics(
    inputs: dict[str, ModelInputs],
    images: pd.DataFrame,
    plots: dict[str, pd.DataFrame],
    context: EvaluationContext,
) -> dict[str, Any]:
    """The content of metrics/evaluate.json."""
    metrics: dict[str, Any] = {
        "eps": context.eps,
        "n": len(images),
        "groups": int(images["group"].nunique()),
    }
    metrics |= baselines(images)
    for model, tables in inputs.items():
        metrics[model] = model_metrics(tables.predictions, context)
        metrics[model] |= min_eps_metrics(
            rows_of(plots["minimum_eps"], model)
        ) | corruption_metrics(tables.corruptions)
        metrics[model] |= gradient_metrics(tables.gradients, context)
        metrics[model] |= second_norm_metrics(tables.predictions, tables.second_norm, context)
        metrics[model] |= distortion_metrics(
            tables.predictions, context.eps, 3 * tables.description["image_size"] ** 2
        )
        metrics[model] |= conformal_metrics(rows_of(plots["conformal"], model), tables.calibration)
    if len(inputs) == 2:
        metrics["difference"] = paired_difference(
            inputs["clean"].predictions, inputs["adv"].predictions, context
        )
    return round_floats(metrics)


def rows_of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of one model."""
    return table[table["model"] == model]


def compute_checks(
    inputs: dict[str, ModelInputs], plots: dict[str, pd.DataFrame], eps: float, majority_rate: float
) -> dict[str, Any]:
    """The content of metrics/diagnostics.json: model -> D1, D2, ..., D28."""
    checks = {}
    for model, tables in inputs.items():
        curve = rows_of(plots["minimum_eps"], model)
        results = tables.checks + run_table_checks(
            model, tables.predictions, eps, tables.training, majority_rate, tables.ensemble, curve
        )
        checks[model] = {
            result.id: result.to_dict()
            for result in sorted(results, key=lambda result: int(result.id[1:]))
        }
    return round_floats(checks)


def compute_tables(
    inputs: dict[str, ModelInputs], context: EvaluationContext
) -> dict[str, pd.DataFrame]:
    """Name -> plots/<name>.csv."""
    by_model = [
        plot_tables(
            model,
            tables.predictions,
            tables.calibration,
            tables.minimum_eps,
            tables.corruptions,
            context,
        )
        for model, tables in inputs.items()
    ]
    return {name: concat_tables([tables[name] for tables in by_model]) for name in by_model[0]}


def concat_tables(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """The models' tables as one; of those without rows only the columns."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def attack_configurations(inputs: dict[str, ModelInputs], norm: str) -> pd.DataFrame:
    """attack,steps,n,budgets,models: what attack_eval ran, a row for each distinct way."""
    how = ["attack", "steps", "n", "budgets"]
    table = pd.concat([tables.predictions.assign(model=model) for model, tables in inputs.items()])
    table = table[table["attack"] != CLEAN]
    counts = (
        table.groupby(["model", "attack", "steps", "eps"], sort=False)["path"]
        .nunique()
        .rename("n")
        .reset_index()
    )
    grouped = counts.groupby(["model", "attack", "steps", "n"], sort=False)["eps"]
    budgets = grouped.agg(
        lambda values: ", ".join(format_eps(eps, norm) for eps in sorted(set(values)))
    ).rename("budgets")
    rows = (
        budgets.reset_index()
        .groupby(how, sort=False)["model"]
        .agg(lambda models: ", ".join(models))
        .rename("models")
    )
    rows = rows.reset_index()
    return rows.assign(label=[attack_label(attack) for attack in rows["attack"]])


def gradient_steps(inputs: dict[str, ModelInputs], eps: float) -> dict[str, int]:
    """Attack -> the steps of one run of it at this eps."""
    table = pd.concat([tables.predictions for tables in inputs.values()])
    here = table[(table["eps"] - eps).abs() <= EPS_TOLERANCE * eps]
    return {attack: int(steps) for attack, steps in here.groupby("attack")["steps"].max().items()}


def chart_context(metrics: dict[str, Any], data: dict[str, Any], p: Params) -> figures.Context:
    """What all charts have in common."""
    synthetic = data.get("synthetic", False)
    images = f"n = {metrics['n']} test images, {metrics['groups']} {cluster_name(data)}"
    note = f"{100 * p.evaluate.confidence:g}% CI" + ("; synthetic data" if synthetic else "")
    return figures.Context(
        p.attack.eps, p.attack.norm, metrics["majority_rate"], images, note, synthetic
    )


def draw_figures(
    inputs: dict[str, ModelInputs],
    dataset: ImageDataset,
    tables: dict[str, pd.DataFrame],
    context: figures.Context,
    p: Params,
) -> dict[str, bytes]:
    """Name -> plots/<name>.png."""
    synthetic, stains = context.synthetic, is_transformation_zone(dataset.classes)
    drawn = {
        "classes": image_figures.class_examples(class_examples(dataset), synthetic=synthetic),
        "overview": figures.overview(
            dataset.manifest, dataset.classes, stains=stains, synthetic=synthetic
        ),
        "robustness": figures.robustness(
            tables["robustness"], gradient_steps(inputs, context.eps), context
        ),
    }
    if curves := {
        model: tables.training for model, tables in inputs.items() if tables.training is not None
    }:
        drawn["training"] = figures.training(
            curves, validation_attacks(p, len(dataset.split_rows("val"))), context
        )
    for model, tables_ in inputs.items():
        folder = PREDICTIONS / model / "examples"
        drawn[f"examples_{model}"] = image_figures.adversarial_examples(
            tables_.examples, folder, p.attack_eval.pgd_steps, p.attack.norm, synthetic=synthetic
        )
    last, models = next(reversed(inputs)), list(inputs)  # attack_eval of adv has both models
    folder = PREDICTIONS / last / "examples"
    drawn["gradients"] = image_figures.input_gradients(
        inputs[last].examples, folder, models, synthetic=synthetic
    )
    patterns = {model: PREDICTIONS / model / "universal.png" for model in models}
    budget = format_budget(p.attack.eps, p.attack.norm)
    drawn["universal"] = image_figures.universal_perturbations(
        patterns, budget, synthetic=synthetic
    )
    return drawn


def validation_attacks(p: Params, images: int) -> dict[str, str]:
    """Model -> the attack of the validation after each epoch, in words. images: of the validation split."""
    budgets = {
        "clean": format_budget(p.train_clean.val_eps, "linf"),
        "adv": format_budget(p.attack.eps, p.attack.norm),
    }
    return {
        model: f"under attack: PGD-{training.val_steps}, {budgets[model]}, n = {min(training.val_images, images)}"
        for model, training in (("clean", p.train_clean), ("adv", p.train_adv))
    }


def draw_report_charts(
    tables: dict[str, pd.DataFrame], context: figures.Context
) -> dict[str, bytes]:
    """Charts that stand in the report only: DVC draws its own from the same tables."""
    return {
        "reliability": figures.reliability(tables["reliability"], context),
        "minimum_eps": figures.minimum_eps(tables["minimum_eps"], context),
        "corruptions": figures.corruptions(tables["corruptions"], context),
    }


def class_examples(dataset: ImageDataset) -> dict[str, np.ndarray]:
    """Class -> uint8 (k, H, W, 3) from the training split, spread evenly over it."""
    train = dataset.split_rows("train")
    examples = {}
    for index, name in enumerate(dataset.classes):
        rows = train[dataset.labels[train] == index]
        spread = np.linspace(0, max(0, len(rows) - 1), min(len(rows), EXAMPLES_PER_CLASS)).astype(
            int
        )
        examples[name] = dataset.images[rows[spread]]
    return examples


def make_report(
    inputs: dict[str, ModelInputs],
    dataset: ImageDataset,
    tables: dict[str, pd.DataFrame],
    metrics: dict[str, Any],
    checks: dict[str, Any],
    data: dict[str, Any],
    drawn: dict[str, bytes],
    p: Params,
) -> Report:
    """All that the page shows."""
    return Report(
        params=flatten(p),
        metrics=metrics,
        checks=checks,
        data=data,
        counts=figures.table_of_counts(dataset.manifest, dataset.classes),
        rejected=read_csv(PROCESSED / "rejected.csv", "preprocess", ("path", "reason")),
        tables=tables,
        training={
            model: tables.training
            for model, tables in inputs.items()
            if tables.training is not None
        },
        attacks=attack_configurations(inputs, p.attack.norm),
        steps=gradient_steps(inputs, p.attack.eps),
        models={model: tables.description for model, tables in inputs.items()},
        ensembles={model: tables.ensemble for model, tables in inputs.items()},
        figures=drawn | {name: (PLOTS / f"{name}.png").read_bytes() for name in SHEETS},
        versions={
            "Python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    )


if __name__ == "__main__":
    run_cli(main)
