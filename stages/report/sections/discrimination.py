"""Discrimination: each class against the rest, clean and in the worst case, with intervals.

AUROC needs no threshold. Sensitivity and specificity are those of one threshold on the probability
of the class, chosen on the clean validation images such that at most 1 - SPECIFICITY of those of
other classes reach it: what a user would set before an attack.
"""

from functools import partial
from typing import Any

import numpy as np

from stages.core.predictions import select
from stages.core.tables import PROBABILITY
from stages.report.blocks import Block, Details, Table, Text, grouped_head, row
from stages.report.formatting import class_label, metric, percent
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.sections.classes import CASES, clean_and_worst

SPECIFICITY = 0.9
MEASURES = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}


def weighted_auroc(scores: np.ndarray, members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of weights: (n,), (n,) bool, (r, n) -> (r,).

    The probability that a member has a higher score than another image, ties counted half
    (Mann-Whitney); NaN where one of the two has no weight.
    """
    order = np.argsort(scores)
    starts = np.unique(scores[order], return_index=True)[1]  # of equal scores the first
    weights, members = weights[:, order], members[order]
    own, others = (
        np.add.reduceat(weights * chosen, starts, axis=1) for chosen in (members, ~members)
    )
    below = np.cumsum(others, axis=1) - others / 2
    pairs = others.sum(axis=1) * own.sum(axis=1)
    ranked = (own * below).sum(axis=1)
    return np.divide(ranked, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def threshold_at(scores: np.ndarray, specificity: float) -> float:
    """The lowest threshold that at most 1 - specificity of these scores (n,) exceed.

    Infinite without scores.
    """
    if not len(scores):
        return np.inf
    return float(np.quantile(scores, specificity, method="inverted_cdf"))


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """auroc, sensitivity and specificity of each class, and the same ``_worst``."""
    intervals, validation = results.intervals, select(model.table("calibration"))
    result: dict[str, Any] = {}
    for case, rows in clean_and_worst(results, model):
        suffix = "_worst" if case != "none" else ""
        cells: dict[str, dict[str, float]] = {f"{name}{suffix}": {} for name in MEASURES}
        for name in results.dataset.classes:
            members, scores = (rows["label"] == name).to_numpy(), rows[PROBABILITY + name]
            if not 0 < members.sum() < len(members):
                continue
            area = partial(weighted_auroc, scores.to_numpy(), members)
            value = area(np.ones((1, len(members))))[0]
            cells[f"auroc{suffix}"] |= with_interval(name, value, intervals.statistic(area))
            others = validation[validation["label"] != name][PROBABILITY + name]
            positive = (scores > threshold_at(others.to_numpy(), SPECIFICITY)).to_numpy()
            for measure, hits, mask in (
                ("sensitivity", positive, members),
                ("specificity", ~positive, ~members),
            ):
                interval = intervals.proportion(hits, mask)
                cells[f"{measure}{suffix}"] |= with_interval(name, hits[mask].mean(), interval)
        result |= cells
    return result


def blocks(results: Results) -> list[Block]:
    """One table."""
    body = []
    for name in results.dataset.classes:
        for case, label in CASES.items():
            suffix = "" if case == "none" else "_worst"
            cells = [
                metric(results.metrics[model][f"{measure}{suffix}"], name, unit=unit)
                for model in results.models
                for measure, unit in (("auroc", ""), ("sensitivity", "%"), ("specificity", "%"))
            ]
            body.append(row(f"{class_label(name)}, {label}", *cells))
    labels = [model.label for model in results.models.values()]
    title = (
        f"Each class against the rest, n = {results.n} test images, with {results.level} "
        "confidence intervals. Source: metrics/evaluate.json."
    )
    table = Table(title, grouped_head(["class"], labels, list(MEASURES.values())), body)
    return [
        Text(
            "Sensitivity and specificity are those of the threshold that has a specificity of "
            f"{percent(SPECIFICITY)} on the clean validation images. Attacks stop at the first "
            "misclassification, so what they leave is an upper bound."
        ),
        Details("AUROC, sensitivity and specificity", [table]),
    ]


SECTION = Section("discrimination", "Discrimination", blocks, metrics=metrics, level=3)
