"""Accuracy under common corruptions."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from stages.core.predictions import CLEAN, is_correct, select
from stages.report.blocks import Block, Cell, Details, Figure, Table, Text, row
from stages.report.formatting import capitalized, percent, proportion
from stages.report.results import ModelResults, Results
from stages.report.section import Section
from stages.report.style import COLORS, GRAY, STYLE, make_figure, render_png

OTHER_LABELS = {  # where the name, with spaces, is none
    "jpeg": "JPEG",
    "contrast": "low contrast",
    "spatial": "rotation and shift",
}


def corruption_label(name: str) -> str:
    """In texts."""
    return OTHER_LABELS.get(name, name.replace("_", " "))


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """corruptions: the same images clean (``none``, 0), then under each corruption."""
    corrupted = model.table("corruptions")
    corrupted, clean = corrupted[corrupted["attack"] == CLEAN], select(model.rows)
    evaluated = clean["path"].isin(corrupted["path"]).to_numpy()
    baseline = clean[evaluated].assign(corruption=CLEAN, severity=0)
    cells, keys = [], ["corruption", "severity"]
    for (name, severity), rows in pd.concat([baseline, corrupted]).groupby(keys, sort=False):
        correct = clean["path"].isin(rows.loc[is_correct(rows), "path"]).to_numpy()
        interval = results.intervals.proportion(correct, evaluated)
        accuracy = correct[evaluated].mean()
        cells.append((model.name, name, severity, accuracy, *interval, len(rows)))
    columns = ["model", *keys, "accuracy", "low", "high", "count"]
    return {"corruptions": pd.DataFrame(cells, columns=columns)}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Accuracy under each corruption, mean over its severities."""
    rows = model.table("corruptions")
    rows = rows[rows["attack"] == CLEAN]
    correct = pd.Series(is_correct(rows))
    accuracy = correct.groupby(rows["corruption"].to_numpy(), sort=False).mean()
    return {
        "corrupted_accuracy": accuracy.to_dict(),
        "corrupted_images": int(rows["path"].nunique()),
    }


@mpl.rc_context(STYLE)
def charts(results: Results) -> dict[str, bytes]:
    """Accuracy under each corruption and severity, one panel per model."""
    table = results.plots["corruptions"]
    severities = sorted(set(table["severity"]) - {0})
    shades = {severity: 0.25 + 0.6 * severity / max(severities) for severity in severities}
    count = len(results.models)
    figure, axes = make_figure(6.4, 2.3 * count + 0.6, count, 1, sharex=True)
    for axis, model in zip(axes[:, 0], results.models.values(), strict=True):
        rows = results.plot("corruptions", model.name)
        clean, corrupted = rows[rows["severity"] == 0], rows[rows["severity"] > 0]
        names = list(dict.fromkeys(corrupted["corruption"]))
        shifts = np.linspace(-0.26, 0.26, len(severities))
        for shift, severity in zip(shifts, severities, strict=True):
            at = corrupted[corrupted["severity"] == severity]
            x = np.array([names.index(name) for name in at["corruption"]]) + shift
            axis.bar(x, at["accuracy"], 0.24, color=COLORS[model.name], alpha=shades[severity])
            axis.vlines(x, at["low"], at["high"], color="#333333", linewidth=1)
        look: Any = {"color": GRAY, "linestyle": "--", "linewidth": 1.2, "label": "Clean"}
        baseline = axis.axhline(clean["accuracy"].iloc[0], **look)
        axis.set(title=f"{model.label} (n = {rows['count'].max()})", ylim=(0, 1.02))
        axis.set(ylabel="Accuracy", xticks=range(len(names)))
        axis.set_xticklabels([corruption_label(name) for name in names])
        axis.grid(axis="x", visible=False)
    bars = [Patch(color=GRAY, alpha=a, label=f"Severity {s}") for s, a in shades.items()]
    figure.legend(handles=[*bars, baseline], loc="outside upper center", ncols=4)
    return {"corruptions": render_png(figure, results.chart_note)}


def corruption_rows(results: Results) -> list[tuple[str, Any, list[str]]]:
    """(corruption, severity, cells): first the clean images, last the mean of all corruptions."""
    table, rows = results.plots["corruptions"], []
    for (name, severity), at in table.groupby(["corruption", "severity"], sort=False):
        cells = [proportion(at[at["model"] == model].iloc[0]) for model in results.models]
        label = capitalized(corruption_label(name)) if severity else "Clean"
        rows.append((label, severity or "", cells))
    return [*rows, ("Mean of all corruptions", "", mean_accuracies(results))]


def mean_accuracies(results: Results) -> list[str]:
    """For each model the mean accuracy over all corruptions and severities."""
    cells = []
    for model in results.models:
        rows = results.plot("corruptions", model)
        cells.append(percent(rows.loc[rows["severity"] > 0, "accuracy"].mean()))
    return cells


def blocks(results: Results) -> list[Block]:
    """The figure; the numbers on demand."""
    labels = [Cell(model.label, "th", {"scope": "col"}) for model in results.models.values()]
    columns = [Cell(name, "th", {"scope": "col"}) for name in ("corruption", "severity")]
    n = results.plots["corruptions"]["count"].max()
    body = [row(name, severity, *cells) for name, severity, cells in corruption_rows(results)]
    table = Table(
        f"Accuracy under common corruptions, n = {n}. Data: plots/corruptions.csv.",
        [[*columns, *labels]],
        body,
        "long",
    )
    return [
        Text(
            "Image degradations without an attacker, each at three severities: out of focus "
            "(blur), JPEG compression, darkness, low contrast (haze), color cast (a warmer lamp), "
            "sensor noise, glare (specular highlights)."
        ),
        Figure(
            "corruptions",
            "Accuracy under each corruption at three severities; the values are in the table below",
            f"Accuracy under common corruptions; thin lines are {results.level} confidence "
            "intervals, the dashed line is the accuracy on the same clean images.",
            "corruptions.csv",
        ),
        Details("Accuracy per corruption and severity", [table]),
    ]


SECTION = Section("corruptions", "Common corruptions", blocks, tables, metrics, charts=charts)
