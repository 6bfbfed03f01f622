"""Adversarial attacks that start from corrupted images, and the worst small rotation and shift."""

import pandas as pd

from stages.core.predictions import CLEAN, is_correct
from stages.report.blocks import Block, Table, Text, grouped_head, row
from stages.report.formatting import capitalized, proportion
from stages.report.results import ModelResults, Results
from stages.report.section import Section
from stages.report.sections.corruptions import corruption_label


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """attacked_corruptions: corrupted images without attack (``none``), and under it."""
    table, images = model.table("corruptions"), results.images["path"]
    attacked = table[table["attack"] != CLEAN]
    severity = table["corruption"].map(attacked.groupby("corruption")["severity"].first())
    without = table[(table["attack"] == CLEAN) & (table["severity"] == severity)]
    cells, keys = [], ["corruption", "attack"]
    for (name, attack), rows in pd.concat([without, attacked]).groupby(keys, sort=False):
        evaluated = images.isin(rows["path"]).to_numpy()
        correct = images.isin(rows.loc[is_correct(rows), "path"]).to_numpy()
        interval = results.intervals.proportion(correct, evaluated)
        accuracy = correct[evaluated].mean()
        cells.append((model.name, name, attack, accuracy, *interval, len(rows)))
    columns = ["model", *keys, "accuracy", "low", "high", "count"]
    return {"attacked_corruptions": pd.DataFrame(cells, columns=columns)}


def attacked_rows(results: Results) -> list[tuple[str, list[str]]]:
    """(corruption, cells): for each model the accuracy without attack and under it."""
    table, rows = results.plots["attacked_corruptions"], []
    for name, members in table.groupby("corruption", sort=False):
        cells = []
        for model in results.models:
            mine = members[members["model"] == model]
            for case in (mine[mine["attack"] == CLEAN], mine[mine["attack"] != CLEAN]):
                cells.append(proportion(case.iloc[0]) if len(case) else "")
        rows.append((capitalized(corruption_label(name)), cells))
    return rows


def blocks(results: Results) -> list[Block]:
    """What it is, and a table."""
    n = results.plots["attacked_corruptions"]["count"].max()
    title = (
        "Accuracy on corrupted images without attack, and under attack (rotation and shift: the "
        f"worst of 25), n = {n}. Data: plots/attacked_corruptions.csv."
    )
    labels = [model.label for model in results.models.values()]
    columns = grouped_head(["corruption"], labels, ["corrupted", "attacked"])
    return [
        Text(
            f"PGD at {results.budget} that starts from a corrupted image of severity 2, on each "
            "image that the corruption left correctly classified; and, without any attacker, the "
            "worst of 25 combinations of small rotations (up to 10°) and shifts (up to 4% of the "
            "side). They do not count in the worst case: no ε bounds corruptions and rotations."
        ),
        Table(title, columns, [row(name, *cells) for name, cells in attacked_rows(results)]),
    ]


SECTION = Section("attacked", "Adversarial attacks on corrupted images", blocks, tables)
