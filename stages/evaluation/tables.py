"""The tables in plots/: one long CSV per chart, rows of both models, with intervals and counts."""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from stages.core.predictions import CLEAN, classes_of
from stages.evaluation.conformal import conformal_table
from stages.evaluation.metrics import EvaluationContext, initially_correct, recalls, reliability
from stages.evaluation.selection import (
    WORST,
    attacks_at,
    correct_under,
    eps_values,
    is_correct,
    select_predictions,
    worst_case_predictions,
)


def robustness_table(model: str, table: pd.DataFrame, context: EvaluationContext) -> pd.DataFrame:
    """model,eps,attack,accuracy,low,high,count: each attack at each of its eps, and the worst case from eps 0 on."""
    clean = is_correct(select_predictions(table))
    cases = [(0.0, CLEAN, clean), (0.0, WORST, clean)]
    for eps in eps_values(table):
        cases += [
            (eps, attack, correct_under(table, attack, eps)) for attack in attacks_at(table, eps)
        ]
        cases.append((eps, WORST, is_correct(worst_case_predictions(table, eps))))
    rows = [
        (model, eps, attack, correct.mean(), *context.intervals.proportion(correct), len(correct))
        for eps, attack, correct in cases
    ]
    return pd.DataFrame(
        rows, columns=["model", "eps", "attack", "accuracy", "low", "high", "count"]
    )


def _clean_and_worst(
    table: pd.DataFrame, context: EvaluationContext
) -> list[tuple[str, pd.DataFrame]]:
    return [(CLEAN, select_predictions(table)), (WORST, worst_case_predictions(table, context.eps))]


def confusion_table(model: str, table: pd.DataFrame, context: EvaluationContext) -> pd.DataFrame:
    """model,attack,actual,predicted,count,share: every cell, also the empty ones; share is of the actual class."""
    classes, parts = classes_of(table), []
    for attack, rows in _clean_and_worst(table, context):
        counts = confusion_matrix(rows["label"], rows["prediction"], labels=classes)
        fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [
            (a, p, counts[i, j], fractions[i, j])
            for i, a in enumerate(classes)
            for j, p in enumerate(classes)
        ]
        parts.append(
            pd.DataFrame(cells, columns=["actual", "predicted", "count", "share"]).assign(
                attack=attack
            )
        )
    return pd.concat(parts).assign(model=model)[
        ["model", "attack", "actual", "predicted", "count", "share"]
    ]


def per_class_table(model: str, table: pd.DataFrame, context: EvaluationContext) -> pd.DataFrame:
    """model,attack,class,recall,low,high,count: recall of each class, clean and in the worst case."""
    parts = []
    for attack, rows in _clean_and_worst(table, context):
        for name, recall in recalls(rows).items():
            members = (rows["label"] == name).to_numpy()
            interval = context.intervals.proportion(is_correct(rows), members)
            parts.append((model, attack, name, recall, *interval, int(members.sum())))
    return pd.DataFrame(
        parts, columns=["model", "attack", "class", "recall", "low", "high", "count"]
    )


def reliability_table(model: str, table: pd.DataFrame, context: EvaluationContext) -> pd.DataFrame:
    """model,attack,bin,confidence,accuracy,count: clean and in the worst case."""
    parts = [
        reliability(rows).assign(attack=attack) for attack, rows in _clean_and_worst(table, context)
    ]
    return pd.concat(parts).assign(model=model)[
        ["model", "attack", "bin", "confidence", "accuracy", "count"]
    ]


def minimum_eps_table(
    model: str, table: pd.DataFrame, minimum_eps: pd.DataFrame, context: EvaluationContext
) -> pd.DataFrame:
    """model,eps,changed,low,high,count: fraction of the correctly classified images misclassified within eps.

    A row for each eps at which it grows, one for 0 and one for the largest eps tried.
    """
    rows, paths = initially_correct(minimum_eps), select_predictions(table)["path"]
    searched = paths.isin(rows["path"]).to_numpy()
    required = np.full(len(paths), np.inf)  # within no eps: not found, or not searched
    found = rows[rows["found"] == 1].set_index("path")["eps"]
    required[paths.isin(found.index)] = paths[paths.isin(found.index)].map(found)
    cells = []
    for eps in sorted({0.0, *rows["eps"]}) if len(rows) else []:
        success = required <= eps
        # Without a perturbation nothing changes, for certain.
        low, high = context.intervals.proportion(success, searched) if eps else (0.0, 0.0)
        cells.append((model, eps, success[searched].mean(), low, high, len(rows)))
    return pd.DataFrame(cells, columns=["model", "eps", "changed", "low", "high", "count"])


def corruptions_table(
    model: str, table: pd.DataFrame, corruptions: pd.DataFrame, context: EvaluationContext
) -> pd.DataFrame:
    """model,corruption,severity,accuracy,low,high,count: the same images clean (``none``, 0), then under each corruption."""
    corruptions = corruptions[corruptions["attack"] == CLEAN]
    clean, keys = select_predictions(table), ["corruption", "severity"]
    evaluated = clean["path"].isin(corruptions["path"]).to_numpy()
    baseline = clean[evaluated].assign(corruption=CLEAN, severity=0)
    cells = []
    for (name, severity), rows in pd.concat([baseline, corruptions]).groupby(keys, sort=False):
        correct = clean["path"].isin(rows.loc[is_correct(rows), "path"]).to_numpy()
        low, high = context.intervals.proportion(correct, evaluated)
        cells.append((model, name, severity, correct[evaluated].mean(), low, high, len(rows)))
    return pd.DataFrame(cells, columns=["model", *keys, "accuracy", "low", "high", "count"])


def attacked_corruptions_table(
    model: str, table: pd.DataFrame, corruptions: pd.DataFrame, context: EvaluationContext
) -> pd.DataFrame:
    """model,corruption,attack,accuracy,low,high,count: corrupted images without attack (``none``), and under it."""
    attacked = corruptions[corruptions["attack"] != CLEAN]
    severity = corruptions["corruption"].map(attacked.groupby("corruption")["severity"].first())
    without = corruptions[(corruptions["attack"] == CLEAN) & (corruptions["severity"] == severity)]
    images, cells = select_predictions(table)["path"], []
    for (name, attack), rows in pd.concat([without, attacked]).groupby(
        ["corruption", "attack"], sort=False
    ):
        evaluated = images.isin(rows["path"]).to_numpy()
        correct = images.isin(rows.loc[is_correct(rows), "path"]).to_numpy()
        interval = context.intervals.proportion(correct, evaluated)
        cells.append((model, name, attack, correct[evaluated].mean(), *interval, len(rows)))
    return pd.DataFrame(
        cells, columns=["model", "corruption", "attack", "accuracy", "low", "high", "count"]
    )


def plot_tables(
    model: str,
    table: pd.DataFrame,
    calibration: pd.DataFrame,
    minimum_eps: pd.DataFrame,
    corruptions: pd.DataFrame,
    context: EvaluationContext,
) -> dict[str, pd.DataFrame]:
    """Name -> the rows of one model in plots/<name>.csv."""
    return {
        "robustness": robustness_table(model, table, context),
        "confusion": confusion_table(model, table, context),
        "per_class": per_class_table(model, table, context),
        "reliability": reliability_table(model, table, context),
        "conformal": conformal_table(model, table, calibration, context),
        "minimum_eps": minimum_eps_table(model, table, minimum_eps, context),
        "corruptions": corruptions_table(model, table, corruptions, context),
        "attacked_corruptions": attacked_corruptions_table(model, table, corruptions, context),
    }
