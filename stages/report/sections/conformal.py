"""Coverage and size of the conformal prediction sets, without attack and under attacks.

Besides the attacks on the prediction there are two on the sets themselves: one pushes the label out
of the set, the other puts further classes into it.
"""

import itertools
import math
from typing import Any

import pandas as pd

from stages.core.conformal import (
    ALPHA,
    CALIBRATIONS,
    MIN_IMAGES,
    label_scores,
    largest_scores,
    prediction_sets,
    thresholds,
)
from stages.core.predictions import (
    CLEAN,
    WORST,
    attacks_at,
    select,
    within,
)
from stages.report.blocks import Block, Details, Items, Table, Text, grouped_head, row
from stages.report.formatting import NOT_AVAILABLE, listed, metric, percent, proportion, worst_last
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section

CASES = {"clean": "without attack", "worst": "in the worst case"}
LARGEST = "largest_set"  # per image the prediction with the largest set of all attacks


def largest_sets(rows: pd.DataFrame, eps: float, threshold: float) -> pd.DataFrame:
    """(n rows) per image the prediction within ε with the most classes in its set, by path."""
    rows = within(rows, eps)
    rows = rows.assign(size=-prediction_sets(rows, threshold).sum(axis=1))
    rows = rows.sort_values(["path", "size", "eps", "attack"])
    return rows.drop_duplicates("path").drop(columns="size").reset_index(drop=True)


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """conformal: clean, under each attack at the main ε, and in the worst case.

    ``coverage`` is the fraction of the test images whose label is in the set, ``set_size`` the mean
    number of classes in it, both with intervals. No rows where the calibration images are too few.
    """
    eps, cells = results.eps, []
    columns = ["model", "calibration", "attack", "coverage", "low", "high"]
    columns += ["set_size", "set_size_low", "set_size_high", "count"]
    limits, on_sets = thresholds(model.table("calibration"), eps), model.table("set_attacks")
    if math.isinf(max(limits.values())):
        return {"conformal": pd.DataFrame([], columns=columns)}
    cases = {CLEAN: select(model.rows)}
    cases |= {attack: select(model.rows, attack, eps) for attack in attacks_at(model.rows, eps)}
    everything = pd.concat([model.rows, on_sets])
    cases[WORST] = largest_scores(everything, eps)
    for calibrated_on, threshold in limits.items():
        cases[LARGEST] = largest_sets(everything, eps, threshold)
        for attack, rows in cases.items():
            covered = label_scores(rows) <= threshold
            sizes = prediction_sets(rows, threshold).sum(axis=1)
            interval = results.intervals.proportion(covered)
            size_interval = results.intervals.mean(sizes) or (sizes.mean(), sizes.mean())
            case = (model.name, calibrated_on, attack)
            values = (covered.mean(), *interval, sizes.mean(), *size_interval)
            cells.append((*case, *values, len(rows)))
    return {"conformal": pd.DataFrame(cells, columns=columns)}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Coverage and mean set size, clean and in the worst case, for each calibration.

    ``set_size_largest``: where per image the attack counts that enlarges its set most.
    """
    images = model.table("calibration")[["path", "group"]].nunique()
    result: dict[str, Any] = {
        "conformal_images": int(images["path"]),
        "conformal_groups": int(images["group"]),
    }
    names = {CLEAN: "clean", WORST: "worst", LARGEST: "largest"}
    rows = results.plot("conformal", model.name)
    for cell in rows[rows["attack"].isin(names)].to_dict("records"):
        calibrated_on, case = cell["calibration"], names[cell["attack"]]
        prefix = "conformal" if calibrated_on == CLEAN else f"conformal_{calibrated_on}"
        if case != "largest":
            interval = (cell["low"], cell["high"])
            result |= with_interval(f"{prefix}_coverage_{case}", cell["coverage"], interval)
        interval = (cell["set_size_low"], cell["set_size_high"])
        result |= with_interval(f"{prefix}_set_size_{case}", cell["set_size"], interval)
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
            f"the sets contain the label of {listed(parts)}. Calibrated under PGD, they hold "
            f"{values['conformal_pgd_set_size_clean']:.2f} of {len(results.dataset.classes)} "
            "classes on average without attack, and "
            f"{metric(values, 'conformal_pgd_set_size_largest', unit='')} under the attacks "
            "that enlarge them most."
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
        label = "Largest set" if attack == LARGEST else results.attack_label(attack)
        cells = []
        for key in itertools.product(results.models, CALIBRATIONS, [attack]):
            cell = cells_of.get(key)
            cells.append(proportion(cell, "coverage") if cell else NOT_AVAILABLE)
            cells.append(f"{cell['set_size']:.2f}" if cell else NOT_AVAILABLE)
        body.append(row(label, *cells))
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
            "The worst case includes an attack that pushes the label out of every set that still "
            "contains it; coverage under attack stays an upper bound, and the size of enlarged "
            "sets a lower one. Without attack coverage may fall short, too: the validation "
            "images also selected the epoch, which makes the guarantee slightly optimistic, and "
            "images of one group depend on each other. The intervals are about the test images and "
            "contain no variance of the calibration."
        ),
    ]


SECTION = Section("conformal", "Conformal prediction sets", blocks, tables, metrics, level=3)
