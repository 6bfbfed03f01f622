"""Subgroups: accuracy by value of each further column of the table of patients.

A column of numbers with many values is divided at its quartiles, one of many other values is taken
for free text and refused. Values of few images are suppressed. The worst and the best value are
compared on the same resamples of the patients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.core.dataset import natural_sort_key
from stages.core.files import read_csv
from stages.core.paths import PROCESSED
from stages.core.predictions import is_correct, select
from stages.report.blocks import Block, Items, Table, Text, grouped_head, row
from stages.report.formatting import listed, metric
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section

MIN_IMAGES = 30  # of a value; fewer are suppressed
MAX_VALUES = 12  # of a column; more are binned, or refused
BINS = 4
CASES = {"clean_accuracy": "clean", "robust_accuracy_worst": "worst case"}


@dataclass(frozen=True)
class Column:
    """A column as the report uses it.

    Attributes:
        name: in the table of patients.
        values: (n,) of the test images, "" where unknown.
        refused: why no subgroup is made of it; "" where that is not so.
    """

    name: str
    values: np.ndarray
    refused: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Value -> test images, in natural order."""
        names, counts = np.unique(self.values[self.values != ""], return_counts=True)
        found = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return {name: found[name] for name in sorted(found, key=natural_sort_key)}

    @property
    def shown(self) -> list[str]:
        """The values with enough images."""
        return [name for name, count in self.counts.items() if count >= MIN_IMAGES]


def columns(results: Results) -> list[Column]:
    """The further columns of the table of patients; none where preprocess found none."""
    file, paths = PROCESSED / "subgroups.csv", results.images["path"]
    if not file.exists():
        return []
    table = read_csv(file, "preprocess", ("path", "column", "value"))
    table = table[table["path"].isin(paths)]
    found = []
    for name in dict.fromkeys(table["column"]):
        known = table[table["column"] == name].set_index("path")["value"]
        found.append(subgroup_column(name, paths.map(known).fillna("").to_numpy(str)))
    return found


def subgroup_column(name: str, values: np.ndarray) -> Column:
    """Values as they are, binned or refused; see the top of this file."""
    known = values[values != ""]
    distinct = len(set(known))
    if distinct <= MAX_VALUES:
        return Column(name, values)
    numbers = pd.to_numeric(pd.Series(known), errors="coerce").to_numpy(float)
    if not np.isfinite(numbers).all():
        return Column(name, values, f"{distinct} different values that are no numbers")
    binned = values.astype(object)
    binned[values != ""] = quartile_names(numbers)
    return Column(name, binned.astype(str))


def quartile_names(numbers: np.ndarray) -> list[str]:
    """(m,) of each number the name of its bin: the range of the numbers in it."""
    edges = np.quantile(numbers, np.arange(1, BINS) / BINS, method="inverted_cdf")
    index = np.searchsorted(edges, numbers)  # of equal numbers all are in one bin
    ranges = {}
    for bin_ in np.unique(index):
        low, high = numbers[index == bin_].min(), numbers[index == bin_].max()
        ranges[bin_] = f"{low:g} to {high:g}" if low < high else f"{low:g}"
    return [ranges[bin_] for bin_ in index]


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Clean and robust accuracy by column and value, and worst minus best value of each column."""
    intervals, outcomes = results.intervals, {}
    for case, rows in zip(CASES, (select(model.rows), results.worst(model)), strict=True):
        outcomes[case] = is_correct(rows)
    by_column: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for column in columns(results):
        if column.refused or len(column.shown) < 2:
            continue
        cells: dict[str, Any] = {name: {} for name in column.shown}
        change: dict[str, float] = {}
        for case, correct in outcomes.items():
            masks = {name: column.values == name for name in column.shown}
            for name, mask in masks.items():
                interval = intervals.proportion(correct, mask)
                cells[name] |= with_interval(case, correct[mask].mean(), interval)
            worst, best = extremes(cells, case)
            value = cells[worst][case] - cells[best][case]
            ends = intervals.difference(correct, masks[worst], masks[best])
            change |= with_interval(case, value, ends)
        by_column[column.name], differences[column.name] = cells, change
    return {"subgroups": by_column, "subgroup_difference": differences} if by_column else {}


def extremes(cells: dict[str, Any], case: str) -> tuple[str, str]:
    """The value with the lowest and that with the highest accuracy."""
    names = sorted(cells, key=lambda name: cells[name][case])
    return names[0], names[-1]


def column_table(results: Results, column: Column) -> Table:
    """The values, and below them the worst minus the best."""
    body = []
    for name in column.shown:
        cells = [
            metric(results.metrics[model]["subgroups"][column.name][name], case)
            for model in results.models
            for case in CASES
        ]
        body.append(row(name, column.counts[name], *cells))
    changes = []
    for model in results.models:
        for case in CASES:
            worst, best = extremes(results.metrics[model]["subgroups"][column.name], case)
            change = results.metrics[model]["subgroup_difference"][column.name]
            changes.append(f"{worst} vs. {best}: {metric(change, case, signed=True)}")
    body.append(row("worst vs. best", "", *changes))
    labels = [model.label for model in results.models.values()]
    title = (
        f"Accuracy by {column.name}, with {results.level} confidence intervals. "
        "Source: metrics/evaluate.json."
    )
    return Table(title, grouped_head([column.name, "n"], labels, [*CASES.values()]), body)


def remarks(results: Results, column: Column) -> Iterator[str]:
    """What is not in the tables, and why."""
    if column.refused:
        yield f"{column.name}: no subgroups, {column.refused}; at most {MAX_VALUES} are expected."
        return
    few = [f"{name} (n = {n})" for name, n in column.counts.items() if n < MIN_IMAGES]
    if few:
        yield f"{column.name}: suppressed for fewer than {MIN_IMAGES} test images: {listed(few)}."
    if len(column.shown) < 2:
        yield f"{column.name}: fewer than two values with at least {MIN_IMAGES} test images."
    if unknown := results.n - sum(column.counts.values()):
        yield f"{column.name}: unknown for {unknown} of {results.n} test images."


def worst_sentences(results: Results, found: list[Column]) -> Iterator[str]:
    """Per model the subgroup with the lowest robust accuracy."""
    for model in results.models.values():
        accuracies = {}
        for column in found:
            for name, cells in results.metrics[model.name]["subgroups"][column.name].items():
                accuracies[f"{column.name} {name}"] = cells
        worst, _ = extremes(accuracies, "robust_accuracy_worst")
        number = metric(accuracies[worst], "robust_accuracy_worst")
        yield f"{model.label}: the worst subgroup is {worst}, robust accuracy {number}."


def blocks(results: Results) -> list[Block]:
    """A table for each column; nothing where there is none."""
    found = columns(results)
    chosen = [column for column in found if not column.refused and len(column.shown) > 1]
    texts = [*worst_sentences(results, chosen)] if chosen else []
    for column in found:
        texts += remarks(results, column)
    if not texts:
        return []
    note = (
        "By the further columns of data.groups; numbers of more than "
        f"{MAX_VALUES} values are divided at their quartiles. Worst and best are chosen on the "
        "images that they are compared on, which makes their difference look large."
    )
    return [Text(note), Items(texts), *(column_table(results, column) for column in chosen)]


SECTION = Section("subgroups", "Subgroups", blocks, metrics=metrics, level=3)
