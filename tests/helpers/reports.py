"""A report of tables made without a model."""

import functools
from collections.abc import Mapping
from typing import Any

import pandas as pd
from stages.evaluation.conformal import conformal_metrics
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
)
from stages.evaluation.report import Report
from stages.evaluation.selection import select_predictions
from stages.evaluation.tables import plot_tables

from stages import evaluate
from stages.core.params_file import flatten, load_stage_params
from stages.core.predictions import classes_of
from tests.helpers.prediction_tables import (
    DATA,
    DESCRIPTION,
    ENSEMBLE,
    EPS,
    GRID,
    make_calibration,
    make_corruptions,
    make_gradients,
    make_minimum_eps,
    make_table,
    make_training,
)
from tests.helpers.repository import ROOT

PARAMS = flatten(load_stage_params(evaluate.Params, ROOT / "params.yaml"))


def evaluation_context(table: pd.DataFrame, resamples: int = 300) -> EvaluationContext:
    """EPS and GRID, and the intervals of the images of a table."""
    groups = select_predictions(table)["group"]
    return EvaluationContext(EPS, GRID, ConfidenceIntervals(groups, 0.95, resamples, 0))


def _evaluate(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The attributes of a report that depend on the predictions."""
    images = select_predictions(next(iter(tables.values())))
    context = evaluation_context(images, 200)
    metrics = {"eps": EPS, "n": len(images), "groups": images["group"].nunique()} | baselines(
        images
    )
    by_model = []
    for model, table in tables.items():
        calibration, minimum_eps, corruptions = (
            make_calibration(table),
            make_minimum_eps(table),
            make_corruptions(table),
        )
        plots = plot_tables(model, table, calibration, minimum_eps, corruptions, context)
        metrics[model] = (
            model_metrics(table, context)
            | min_eps_metrics(plots["minimum_eps"])
            | corruption_metrics(corruptions)
        )
        metrics[model] |= distortion_metrics(table, EPS, 3 * DESCRIPTION["image_size"] ** 2)
        metrics[model] |= gradient_metrics(make_gradients(table), context)
        metrics[model] |= conformal_metrics(plots["conformal"], calibration)
        by_model.append(plots)
    if len(tables) == 2:
        metrics["difference"] = paired_difference(*tables.values(), context)
    test = images["label"].value_counts().reindex(list(classes_of(images)), fill_value=0)
    attacks = [
        ("pgd", 10, len(images), "8/255", "clean", "PGD"),
        ("apgd", 20, len(images), "8/255", "clean", "Ensemble (apgd)"),
    ]
    return {
        "metrics": metrics,
        "checks": {model: {} for model in tables},
        "counts": pd.DataFrame({"train": 30, "val": 5, "test": test}),
        "tables": {
            name: evaluate.concat_tables([part[name] for part in by_model]) for name in by_model[0]
        },
        "training": {model: make_training() for model in tables},
        "attacks": pd.DataFrame(
            attacks, columns=["attack", "steps", "n", "budgets", "models", "label"]
        ),
        "steps": {"pgd": 10, "apgd": 20},
        "models": dict.fromkeys(tables, DESCRIPTION),
        "ensembles": dict.fromkeys(tables, ENSEMBLE),
    }


@functools.cache
def _evaluate_default(models: tuple[str, ...]) -> dict[str, Any]:
    return _evaluate({model: make_table(model) for model in models})


def make_report(
    models: tuple[str, ...] = ("clean", "adv"),
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    data: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Report:
    """What the page shows. Tests share its parts and must not change them.

    Args:
        models: whose tables are made, unless ``tables`` are given.
        tables: model -> predictions.csv.
        data: changes of DATA.
        params: changes of the default parameters.
        changes: of the report's attributes.
    """
    attributes = {
        "params": PARAMS | (params or {}),
        "data": DATA | (data or {}),
        "rejected": pd.DataFrame(
            {"path": ["Type_1/<script>alert(1)</script>.jpg"], "reason": ["truncated & broken"]}
        ),
        "figures": {},
        "versions": {"Python": "3.11.0"},
    }
    return Report(
        **(attributes | (_evaluate(tables) if tables else _evaluate_default(models)) | changes)
    )
