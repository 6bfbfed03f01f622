"""Results of each class: recall, and confusion matrices."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score

from stages.core.predictions import CLEAN, WORST, classes_of, is_correct, select
from stages.report.blocks import Block, Cell, Columns, Heading, Row, Table, grouped_head, row
from stages.report.formatting import MODEL_LABELS, NOT_AVAILABLE, class_label, proportion
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section

CASES = {CLEAN: "clean", WORST: "worst case"}


def clean_and_worst(results: Results, model: ModelResults) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows without attack, and those of the worst case."""
    yield CLEAN, select(model.rows)
    yield WORST, results.worst(model)


def recalls(rows: pd.DataFrame) -> dict[str, float]:
    """Class -> fraction of its images that is classified correctly; of classes with images."""
    fractions = pd.Series(is_correct(rows)).groupby(rows["label"].to_numpy()).mean()
    return {name: float(fractions[name]) for name in classes_of(rows) if name in fractions}


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """per_class: recall of each class. confusion: every cell; share is of the actual class."""
    per_class, confusion = [], []
    for attack, rows in clean_and_worst(results, model):
        for name, recall in recalls(rows).items():
            members = (rows["label"] == name).to_numpy()
            interval = results.intervals.proportion(is_correct(rows), members)
            per_class.append((model.name, attack, name, recall, *interval, int(members.sum())))
        classes = classes_of(rows)
        counts = confusion_matrix(rows["label"], rows["prediction"], labels=classes)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for i, actual in enumerate(classes):
            for j, predicted in enumerate(classes):
                cell = (model.name, attack, actual, predicted, counts[i, j], shares[i, j])
                confusion.append(cell)
    recall_columns = ["model", "attack", "class", "recall", "low", "high", "count"]
    cell_columns = ["model", "attack", "actual", "predicted", "count", "share"]
    return {
        "per_class": pd.DataFrame(per_class, columns=recall_columns),
        "confusion": pd.DataFrame(confusion, columns=cell_columns),
    }


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Recall of each class, their means, and macro F1."""
    result: dict[str, Any] = {}
    names = {CLEAN: "balanced_accuracy", WORST: "balanced_robust_accuracy_worst"}
    for attack, rows in clean_and_worst(results, model):
        correct, labels = is_correct(rows), rows["label"].to_numpy()
        interval = results.intervals.balanced(correct, labels)
        result |= with_interval(names[attack], np.mean([*recalls(rows).values()]), interval)
    clean = select(model.rows)
    labels = clean["label"].to_numpy()
    settings: Any = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    result["macro_f1"] = float(f1_score(labels, clean["prediction"], **settings))
    # Their intervals are in plots/per_class.csv.
    worst = recalls(results.worst(model))
    result |= {f"recall_{name}": recall for name, recall in recalls(clean).items()}
    return result | {f"robust_recall_{name}": recall for name, recall in worst.items()}


def per_class_rows(results: Results) -> list[tuple[str, int, list[str]]]:
    """(class, n, cells): for each model the recall on clean images and in the worst case."""
    table, rows = results.plots["per_class"], []
    for name in results.dataset.classes:
        members, cells = table[table["class"] == name], []
        for model in results.models:
            for attack in CASES:
                chosen = members[(members["model"] == model) & (members["attack"] == attack)]
                records = chosen.to_dict("records")
                cells.append(proportion(records[0], "recall") if records else NOT_AVAILABLE)
        rows.append((name, int(members["count"].max()) if len(members) else 0, cells))
    return rows


def confusion_tables(results: Results) -> list[Block]:
    """One for each model, clean and in the worst case; the darker, the more of the true class."""
    blocks: list[Block] = []
    groups = results.plots["confusion"].groupby(["model", "attack"], sort=False)
    for (model, attack), cells in groups:
        corner = Cell("true ↓ predicted →", "th", {"scope": "col", "class": "small"})
        columns = [class_label(name) for name in cells["predicted"].unique()]
        head: Row = [corner, *(Cell(name, "th", {"scope": "col"}) for name in columns)]
        body = []
        for actual, members in cells.groupby("actual", sort=False):
            shown: Row = row(class_label(actual))
            for cell in members.itertuples():
                style = f"background: rgba(var(--cell), {0.6 * cell.share:.2f})"
                shown.append(Cell(cell.count, "td", {"style": style}))
            body.append(shown)
        title = f"{MODEL_LABELS[model]}, {CASES[attack]}. Data: plots/confusion.csv."
        blocks.append(Table(title, [head], body, "confusion"))
    return blocks


def blocks(results: Results) -> list[Block]:
    """Recalls, and confusion matrices."""
    labels = [model.label for model in results.models.values()]
    body = [row(class_label(name), n, *cells) for name, n, cells in per_class_rows(results)]
    title = (
        f"Recall of each class, with {results.level} confidence intervals. "
        "Data: plots/per_class.csv."
    )
    return [
        Table(title, grouped_head(["class", "n"], labels, ["clean", "worst case"]), body),
        Heading("Confusion matrices"),
        Columns(confusion_tables(results)),
    ]


SECTION = Section("classes", "Per-class results", blocks, tables, metrics)
