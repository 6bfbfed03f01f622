"""Minimum adversarial perturbation: its distribution over the images."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from stages.report.blocks import Block, Figure, Items
from stages.report.formatting import MODEL_LABELS
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.style import COLORS, GRAY, LINES, STYLE, axis_label, make_figure, render_png


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """minimum_eps: fraction of the correctly classified images misclassified within ε.

    A row for each ε at which it grows, one for 0 and one for the largest ε tried.
    """
    table, paths = model.table("minimum_eps"), results.images["path"]
    rows = table[(table["eps"] > 0) | (table["found"] == 0)]  # others need no perturbation
    searched = paths.isin(rows["path"]).to_numpy()
    required = np.full(len(paths), np.inf)  # within no ε: not found, or not searched
    found = rows[rows["found"] == 1].set_index("path")["eps"]
    required[paths.isin(found.index)] = paths[paths.isin(found.index)].map(found)
    cells = []
    for eps in sorted({0.0, *rows["eps"]}) if len(rows) else []:
        success = required <= eps
        # Without a perturbation nothing changes, for certain.
        interval = results.intervals.proportion(success, searched) if eps else (0.0, 0.0)
        cells.append((model.name, eps, success[searched].mean(), *interval, len(rows)))
    columns = ["model", "eps", "changed", "low", "high", "count"]
    return {"minimum_eps": pd.DataFrame(cells, columns=columns)}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Median minimum ε of the correctly classified images, with Woodruff's interval (1952).

    It ends where the band around the curve crosses one half. Left out is what lies beyond the
    largest ε tried.
    """
    curve = results.plot("minimum_eps", model.name)
    result: dict[str, Any] = {"min_eps_images": int(curve["count"].max()) if len(curve) else 0}
    median, low, high = (
        curve.loc[curve[name] >= 0.5, "eps"].min() for name in ("changed", "high", "low")
    )  # NaN: never
    if np.isfinite(median):
        interval = (low, high) if np.isfinite(high) else None
        result |= with_interval("median_min_eps", median, interval)
    return result


@mpl.rc_context(STYLE)
def charts(results: Results) -> dict[str, bytes]:
    """Attack success rate against ε."""
    table, norm = results.plots["minimum_eps"], results.budget.norm
    figure, axes = make_figure(6.4, 3.4, 1, 1)
    axis, scale = axes[0, 0], norm.axis_scale
    largest = (table["eps"].max() if len(table) else results.eps) * scale
    for model, rows in table.groupby("model", sort=False):
        beyond = rows.tail(1).assign(eps=1.04 * largest / scale)  # where nothing changes any more
        rows = pd.concat([rows, beyond])
        eps, color = rows["eps"] * scale, COLORS[model]
        label = f"{MODEL_LABELS[model]} (n = {rows['count'].iloc[0]})"
        band: Any = {"step": "post", "color": color, "alpha": 0.18, "linewidth": 0}
        axis.fill_between(eps, rows["low"], rows["high"], **band)
        axis.step(eps, rows["changed"], LINES[model], where="post", color=color, label=label)
    axis.axhline(0.5, color=GRAY, linewidth=1, linestyle=":", label="Median")
    axis.set(xlim=(0, 1.04 * largest), ylim=(0, 1.02), xlabel=axis_label(norm))
    axis.set(ylabel="Attack success rate", title="Minimum adversarial perturbation (cumulative)")
    figure.legend(loc="outside upper center", ncols=3, handlelength=3.2)
    return {"minimum_eps": render_png(figure, results.chart_note)}


def sentences(results: Results) -> list[str]:
    """Per model the median minimum perturbation."""
    texts, norm = [], results.budget.norm
    for model in results.models.values():
        values = results.metrics[model.name]
        n = values["min_eps_images"]
        if "median_min_eps" in values:
            median = norm.format(values["median_min_eps"])
            if "median_min_eps_low" in values:
                ends = [norm.format(values[f"median_min_eps_{end}"]) for end in ("low", "high")]
                median += f" [{', '.join(ends)}]"
            texts.append(f"{model.label}: median {median} (n = {n}).")
        elif n:
            texts.append(
                f"{model.label}: no eps that was tried suffices for half of the images (n = {n})."
            )
        else:
            texts.append(f"{model.label}: no image is classified correctly without attack.")
    return texts


def blocks(results: Results) -> list[Block]:
    """The figure, and the medians."""
    return [
        Figure(
            "minimum_eps",
            "Attack success rate against the perturbation budget. " + " ".join(sentences(results)),
            "Fraction of images misclassified within ε, for images classified correctly without "
            "attack (bisection with PGD: an upper bound of the true minimum); bands are "
            f"{results.level} confidence intervals.",
            "minimum_eps.csv",
        ),
        Items(sentences(results)),
    ]


SECTION = Section(
    "minimum-eps",
    "Minimum adversarial perturbation",
    blocks,
    tables,
    metrics,
    charts=charts,
    level=3,
)
