"""Conformal prediction: sets of classes that contain the label with a chosen probability.

Split conformal prediction (arXiv:2107.07511). The score of a class is 1 minus its probability (LAC,
Sadinle et al. 2019, arXiv:1609.00451). A quantile of the scores that the labels of n calibration
images have is the threshold; a set holds the classes whose score doesn't exceed it, possibly none.
Where calibration and test images are exchangeable, a set contains the label with a probability of
at least 1 - alpha, whatever the model. Attacked images and clean ones are not exchangeable: what an
attack costs shows as missing coverage.
"""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from stages.core.predictions import CLEAN, WORST, attacks_at, probabilities, select, within
from stages.report.blocks import Block, Details, Items, Table, Text, grouped_head, row
from stages.report.formatting import NOT_AVAILABLE, listed, metric, percent, proportion, worst_last
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.sections.calibration import label_probabilities

ALPHA = 0.1  # one minus the coverage that is aimed at
MIN_IMAGES = math.ceil(1 / ALPHA - 1)  # below, only the set of all classes has that coverage
CALIBRATIONS = (CLEAN, "pgd")  # what calibration.csv has of the validation images
CASES = {"clean": "without attack", "worst": "in the worst case"}


def label_scores(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) score of each image's label, in [0, 1]; 0 = certain."""
    return 1 - label_probabilities(rows)


def conformal_quantile(scores: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores: with the correction for finite samples.

    Infinite where n < 1 / alpha - 1: then all classes are in a set.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))  # 150 * (1 - 0.18) > 123
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def prediction_sets(rows: pd.DataFrame, threshold: float) -> np.ndarray:
    """(rows, classes) bool: the classes whose score is at most the threshold."""
    return 1 - probabilities(rows) <= threshold


def largest_scores(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """(n rows) per image the prediction within ε of the largest score of its label, by path.

    A set that contains the label under it contains the label under every attack, and without one.
    """
    rows = within(rows, eps)
    order = ["path", "certainty", "eps", "attack"]  # no p_: a class may have any name
    rows = rows.assign(certainty=label_probabilities(rows)).sort_values(order)
    return rows.drop_duplicates("path").drop(columns="certainty").reset_index(drop=True)


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """conformal: clean, under each attack at the main ε, and in the worst case.

    ``coverage`` is the fraction of the test images whose label is in the set, ``set_size`` the mean
    number of classes in it. No rows where the calibration images are too few.
    """
    eps, calibration = results.eps, model.table("calibration")
    cases = {CLEAN: select(model.rows)}
    cases |= {attack: select(model.rows, attack, eps) for attack in attacks_at(model.rows, eps)}
    cases[WORST] = largest_scores(model.rows, eps)
    cells = []
    for calibrated_on in CALIBRATIONS:
        images = select(calibration, calibrated_on, 0.0 if calibrated_on == CLEAN else eps)
        threshold = conformal_quantile(label_scores(images), ALPHA)
        if not math.isfinite(threshold):
            continue
        for attack, rows in cases.items():
            covered = label_scores(rows) <= threshold
            sizes = prediction_sets(rows, threshold).sum(axis=1)
            interval = results.intervals.proportion(covered)
            case = (model.name, calibrated_on, attack)
            cells.append((*case, covered.mean(), *interval, sizes.mean(), len(rows)))
    columns = ["model", "calibration", "attack", "coverage", "low", "high", "set_size", "count"]
    return {"conformal": pd.DataFrame(cells, columns=columns)}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Coverage and mean set size, clean and in the worst case, for each calibration."""
    images = model.table("calibration")[["path", "group"]].nunique()
    result: dict[str, Any] = {
        "conformal_images": int(images["path"]),
        "conformal_groups": int(images["group"]),
    }
    names = {CLEAN: "clean", WORST: "worst"}
    rows = results.plot("conformal", model.name)
    for cell in rows[rows["attack"].isin(names)].to_dict("records"):
        calibrated_on, case = cell["calibration"], names[cell["attack"]]
        prefix = "conformal" if calibrated_on == CLEAN else f"conformal_{calibrated_on}"
        interval = (cell["low"], cell["high"])
        result |= with_interval(f"{prefix}_coverage_{case}", cell["coverage"], interval)
        result[f"{prefix}_set_size_{case}"] = float(cell["set_size"])
    return result


def sentences(results: Results) -> list[str]:
    """Per model coverage and mean size of the sets, or that the images are too few."""
    texts = []
    for model in results.models.values():
        values = results.metrics[model.name]
        n, groups = values["conformal_images"], values["conformal_groups"]
        if "conformal_coverage_clean" not in values:
            texts.append(
                f"{model.label}: inconclusive, n = {n} validation images; with fewer than "
                f"{MIN_IMAGES} every set holds all classes."
            )
            continue
        parts = [
            f"{metric(values, f'conformal_coverage_{case}')} of the test images {where} "
            f"({values[f'conformal_set_size_{case}']:.2f} classes on average)"
            for case, where in CASES.items()
        ]
        texts.append(
            f"{model.label}: calibrated on n = {n} clean validation images in {groups} groups, "
            f"the sets contain the label of {listed(parts)}."
        )
    return texts


def coverage_table(results: Results) -> list[Block]:
    """Coverage and set size under each attack; nothing where the images are too few."""
    table = results.plots["conformal"]
    if not len(table):
        return []
    cells_of = {(c["model"], c["calibration"], c["attack"]): c for c in table.to_dict("records")}
    body = []
    for attack in worst_last(table["attack"], WORST):
        cells = []
        for key in itertools.product(results.models, CALIBRATIONS, [attack]):
            cell = cells_of.get(key)
            cells.append(proportion(cell, "coverage") if cell else NOT_AVAILABLE)
            cells.append(f"{cell['set_size']:.2f}" if cell else NOT_AVAILABLE)
        body.append(row(results.attack_label(attack), *cells))
    labels = [model.label for model in results.models.values()]
    columns = [
        "coverage, calibrated on clean images",
        "set size",
        "coverage, calibrated under PGD",
        "set size",
    ]
    title = (
        f"Coverage of the prediction sets, with {results.level} confidence intervals, and their "
        f"mean size, on all {results.n} test images at {results.budget}. Data: plots/conformal.csv."
    )
    numbers = Table(title, grouped_head(["attack"], labels, columns), body)
    return [Details("Coverage and set size per attack", [numbers])]


def blocks(results: Results) -> list[Block]:
    """What the sets are, and what an attack costs them."""
    return [
        Text(
            f"Sets of classes that should contain the label for {percent(1 - ALPHA)} of the images "
            "(split conformal prediction, score 1 − p), calibrated on the validation images: once "
            f"clean, once under PGD at {results.budget}. The guarantee holds for images that are "
            "exchangeable with those of the calibration; an attack breaks this, and missing "
            "coverage shows how much."
        ),
        Items(sentences(results)),
        *coverage_table(results),
        Text(
            "Attacks aim at the prediction and stop at the first misclassification, so coverage "
            "under attack is an upper bound. Without attack it may fall short, too: the validation "
            "images also selected the epoch, which makes the guarantee slightly optimistic, and "
            "images of one group depend on each other. The intervals are about the test images and "
            "contain no variance of the calibration."
        ),
    ]


SECTION = Section("conformal", "Conformal prediction sets", blocks, tables, metrics, level=3)
