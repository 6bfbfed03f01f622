"""The charts, as PNG bytes: from the tables in plots/ and the training curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stages.core.budgets import format_budget
from stages.core.dataset import SPLITS, STAINS
from stages.core.predictions import CLEAN
from stages.evaluation.formatting import (
    CORRUPTION_LABELS,
    MODEL_LABELS,
    attack_label,
    class_label,
    percent,
)
from stages.evaluation.selection import EPS_TOLERANCE, WORST
from stages.evaluation.style import (
    COLORS,
    GRAY,
    GREEN,
    LINES,
    MARKERS,
    NEUTRAL,
    PURPLE,
    SKY,
    STYLE,
    TEXT_COLORS,
    make_figure,
    render_png,
    truncate,
)

STAIN_COLORS = dict(zip(STAINS, ("#E8A0A8", "#8A4B12", GREEN), strict=True))
EPS_SCALE = {"linf": 255, "l2": 1}  # norm -> what eps is multiplied by on an axis
EPS_AXIS = {
    "linf": "Perturbation budget ε (L∞, × 1/255)",
    "l2": "Perturbation budget ε (L2, pixel values in [0, 1])",
}
MIN_SIZES = 4  # distinct sizes of the originals from which their distribution is drawn


@dataclass(frozen=True)
class Context:
    """What the charts have in common: the threat model, the baseline, and notes on n and intervals."""

    eps: float
    norm: str
    majority_rate: float
    images: str
    note: str
    synthetic: bool


@mpl.rc_context(STYLE)
def robustness(table: pd.DataFrame, steps: Mapping[str, int], context: Context) -> bytes:
    """Above: robust accuracy against eps, with its interval. Below: accuracy under each attack at the main eps.

    Args:
        table: plots/robustness.csv.
        steps: attack -> gradient steps at the main eps.
        context: of all charts.
    """
    here = table[
        np.isclose(table["eps"], context.eps, rtol=EPS_TOLERANCE) | (table["attack"] == CLEAN)
    ]
    rows = [*(attack for attack in dict.fromkeys(here["attack"]) if attack != WORST), WORST]
    figure = Figure((6.4, 4.0 + 0.33 * len(rows)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.4, 0.6 + 0.33 * len(rows)])
    curve, attacks = (part.subplots() for part in parts)
    _draw_curve(curve, table[table["attack"] == WORST], context)
    for shift, (model, values) in zip(
        (-0.17, 0.17), here.groupby("model", sort=False), strict=False
    ):
        for _, row in values.iterrows():
            y = rows.index(row["attack"]) + shift
            attacks.hlines(y, row["low"], row["high"], color=COLORS[model], alpha=0.45, linewidth=3)
            attacks.plot(row["accuracy"], y, MARKERS[model], color=COLORS[model], markersize=5)
            text = f"{percent(row['accuracy'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            attacks.text(1.02, y, text, va="center", fontsize=7, color=TEXT_COLORS[model])
    attacks.axvline(context.majority_rate, color=GRAY, linewidth=1, linestyle=":")
    attacks.set_yticks(range(len(rows)), [attack_label(name, steps.get(name)) for name in rows])
    attacks.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="Accuracy")
    attacks.set_title(f"Accuracy per attack ({format_budget(context.eps, context.norm)})")
    attacks.grid(axis="y", visible=False)
    parts[0].legend(
        *curve.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=3.2
    )
    return render_png(figure, f"{context.images}; {context.note}")


def _draw_curve(axis: Axes, worst: pd.DataFrame, context: Context) -> None:
    scale = EPS_SCALE[context.norm]
    for model, rows in worst.groupby("model", sort=False):
        eps = rows["eps"] * scale
        axis.fill_between(
            eps, rows["low"], rows["high"], color=COLORS[model], alpha=0.18, linewidth=0
        )
        look: Any = {"marker": MARKERS[model], "color": COLORS[model], "label": MODEL_LABELS[model]}
        axis.plot(eps, rows["accuracy"], LINES[model], **look)
    label = f"Majority class ({percent(context.majority_rate)})"
    axis.axhline(context.majority_rate, color=GRAY, linewidth=1, linestyle=":", label=label)
    _eps_axis(axis, worst["eps"] * scale, context.norm)
    axis.set(
        ylim=(0, 1),
        ylabel="Robust accuracy",
        title="Robust accuracy vs. ε (worst case over all attacks)",
    )


def _eps_axis(axis: Axes, values: Sequence[float], norm: str) -> None:
    """Linear, with ticks at the values unless they would touch."""
    ticks = sorted({round(float(value), 6) for value in values})
    largest = ticks[-1] or 1
    kept = [
        tick
        for i, tick in enumerate(ticks)
        if i == 0 or tick == ticks[-1] or largest - tick > 0.06 * largest
    ]
    kept = [
        tick
        for i, tick in enumerate(kept)
        if i == 0 or tick - kept[i - 1] > 0.06 * largest or tick == kept[-1]
    ]
    axis.set_xticks(kept, [f"{tick:.3g}" for tick in kept])
    axis.set(xlim=(0, 1.04 * largest), xlabel=EPS_AXIS[norm])


@mpl.rc_context(STYLE)
def training(
    curves: Mapping[str, pd.DataFrame], attacked: Mapping[str, str], context: Context
) -> bytes:
    """Accuracy above, loss below, a column per model: training, validation, validation under attack.

    Args:
        curves: model -> training curve.
        attacked: model -> the attack of its validation, in words.
        context: of all charts.
    """
    columns = (
        ("train_accuracy", "train_loss", SKY, ":", "Training"),
        ("val_clean_accuracy", "val_loss", GREEN, "-", "Validation, clean"),
        ("val_robust_accuracy", "val_robust_loss", PURPLE, "--", "Validation under attack"),
    )
    figure, axes = make_figure(
        3.2 * len(curves) + 0.2, 4.8, 2, len(curves), sharex="col", sharey="row"
    )
    for (above, below), (model, curve) in zip(axes.T, curves.items(), strict=True):
        best = curve[curve["chosen"] == 1]
        for accuracy, loss, color, style, label in columns:
            for axis, column in ((above, accuracy), (below, loss)):
                if column not in curve:
                    continue
                axis.plot(
                    curve["epoch"],
                    curve[column],
                    style,
                    color=color,
                    label=label,
                    marker=".",
                    markersize=4,
                )
                axis.plot(best["epoch"], best[column], "*", color=color, markersize=9, zorder=3)
        above.set_title(f"{MODEL_LABELS[model]}\n", loc="center")
        above.text(
            0.5,
            1.02,
            attacked[model],
            transform=above.transAxes,
            ha="center",
            fontsize=7,
            color=GRAY,
        )
        above.set(ylim=(0, 1.02))
        below.set(xlabel="Epoch", ylim=(0, None))
        below.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Loss")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=3.2)
    return render_png(
        figure, "★ selected epoch" + ("; synthetic data" if context.synthetic else "")
    )


@mpl.rc_context(STYLE)
def overview(
    manifest: pd.DataFrame, names: Sequence[str], *, stains: bool, synthetic: bool
) -> bytes:
    """Images per class and split; sizes of the originals where they differ; on colposcopy images the estimated stain."""
    shorter = manifest[["width", "height"]].min(axis=1)
    sizes = shorter.nunique() >= MIN_SIZES
    panels = 1 + sizes + stains
    figure, axes = make_figure(3.3 * panels + 0.4, 1.5 + 0.42 * len(names), 1, panels)
    counts = table_of_counts(manifest, names)
    _stacked_bars(
        axes[0, 0], counts, dict(zip(SPLITS, NEUTRAL, strict=True)), "Images per class and split"
    )
    if sizes:
        axes[0, 1].hist(shorter, bins=20, color=NEUTRAL[1])
        axes[0, 1].set(
            title="Size of the originals", xlabel="Shorter side (pixels)", ylabel="Images"
        )
    if stains:
        kinds = pd.crosstab(manifest["label"], manifest["stain_guess"]).reindex(
            list(names), fill_value=0
        )
        kinds = kinds[[stain for stain in STAINS if stain in kinds]]
        _stacked_bars(axes[0, -1], kinds, STAIN_COLORS, "Estimated stain (from mean color)")
    return render_png(figure, "synthetic data" if synthetic else "")


def _stacked_bars(axis: Axes, counts: pd.DataFrame, colors: Mapping[str, str], title: str) -> None:
    """A bar for each row, a segment for each column, with its number where it fits."""
    left = np.zeros(len(counts))
    names = [
        truncate(f"{class_label(name)} ({total})", 24) for name, total in counts.sum(axis=1).items()
    ]
    for column in counts:
        bars = axis.barh(
            range(len(names)), counts[column], left=left, color=colors[column], label=column
        )
        texts = [str(n) if n > 0.08 * counts.sum(axis=1).max() else "" for n in counts[column]]
        dark = np.dot(mpl.colors.to_rgb(colors[column]), (0.299, 0.587, 0.114)) < 0.4
        axis.bar_label(
            bars, texts, label_type="center", color="white" if dark else "black", fontsize=8
        )
        left += counts[column].to_numpy()
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(title=title, xlabel="Images")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)


@mpl.rc_context(STYLE)
def minimum_eps(table: pd.DataFrame, context: Context) -> bytes:
    """Attack success rate against eps, the distribution of the minimum perturbation. table: plots/minimum_eps.csv."""
    figure, axes = make_figure(6.4, 3.4, 1, 1)
    axis, scale = axes[0, 0], EPS_SCALE[context.norm]
    largest = (table["eps"].max() if len(table) else context.eps) * scale
    for model, rows in table.groupby("model", sort=False):
        rows = pd.concat(
            [rows, rows.tail(1).assign(eps=1.04 * largest / scale)]
        )  # beyond the last step nothing changes
        eps, label = rows["eps"] * scale, f"{MODEL_LABELS[model]} (n = {rows['count'].iloc[0]})"
        axis.fill_between(
            eps,
            rows["low"],
            rows["high"],
            step="post",
            color=COLORS[model],
            alpha=0.18,
            linewidth=0,
        )
        axis.step(
            eps, rows["changed"], LINES[model], where="post", color=COLORS[model], label=label
        )
    axis.axhline(0.5, color=GRAY, linewidth=1, linestyle=":", label="Median")
    axis.set(
        xlim=(0, 1.04 * largest),
        ylim=(0, 1.02),
        ylabel="Attack success rate",
        xlabel=EPS_AXIS[context.norm],
    )
    axis.set_title("Minimum adversarial perturbation (cumulative)")
    figure.legend(loc="outside upper center", ncols=3, handlelength=3.2)
    return render_png(figure, context.note)


@mpl.rc_context(STYLE)
def corruptions(table: pd.DataFrame, context: Context) -> bytes:
    """Accuracy under each corruption and severity, one panel per model, with intervals. table: plots/corruptions.csv."""
    models = list(dict.fromkeys(table["model"]))
    severities = sorted(set(table["severity"]) - {0})
    shades = {severity: 0.25 + 0.6 * severity / max(severities) for severity in severities}
    figure, axes = make_figure(6.4, 2.3 * len(models) + 0.6, len(models), 1, sharex=True)
    for axis, model in zip(axes[:, 0], models, strict=True):
        rows = table[table["model"] == model]
        clean, corrupted = rows[rows["severity"] == 0], rows[rows["severity"] > 0]
        names = list(dict.fromkeys(corrupted["corruption"]))
        for shift, severity in zip(
            np.linspace(-0.26, 0.26, len(severities)), severities, strict=True
        ):
            at = corrupted[corrupted["severity"] == severity]
            x = np.array([names.index(name) for name in at["corruption"]]) + shift
            axis.bar(x, at["accuracy"], 0.24, color=COLORS[model], alpha=shades[severity])
            axis.vlines(x, at["low"], at["high"], color="#333333", linewidth=1)
        baseline = axis.axhline(
            clean["accuracy"].iloc[0], color=GRAY, linestyle="--", linewidth=1.2, label="Clean"
        )
        axis.set(
            title=f"{MODEL_LABELS[model]} (n = {rows['count'].max()})",
            ylim=(0, 1.02),
            ylabel="Accuracy",
        )
        axis.set(
            xticks=range(len(names)),
            xticklabels=[CORRUPTION_LABELS.get(name, name) for name in names],
        )
        axis.grid(axis="x", visible=False)
    bars = [
        Patch(color=GRAY, alpha=alpha, label=f"Severity {severity}")
        for severity, alpha in shades.items()
    ]
    figure.legend(handles=[*bars, baseline], loc="outside upper center", ncols=4)
    return render_png(figure, context.note)


@mpl.rc_context(STYLE)
def reliability(table: pd.DataFrame, context: Context) -> bytes:
    """Reliability diagrams: accuracy against confidence, clean and in the worst case. table: plots/reliability.csv."""
    cases = {
        CLEAN: "Clean images",
        WORST: f"Worst case ({format_budget(context.eps, context.norm)})",
    }
    figure, axes = make_figure(6.4, 3.5, 1, 2, sharey=True)
    for axis, (attack, title) in zip(axes[0], cases.items(), strict=True):
        axis.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1, label="Perfect calibration")
        for model, rows in table[table["attack"] == attack].groupby("model", sort=False):
            axis.plot(
                rows["confidence"],
                rows["accuracy"],
                LINES[model],
                color=COLORS[model],
                label=MODEL_LABELS[model],
            )
            size = 10 + 120 * rows["count"] / table["count"].max()
            axis.scatter(
                rows["confidence"],
                rows["accuracy"],
                size,
                color=COLORS[model],
                alpha=0.7,
                linewidths=0,
            )
        axis.set(title=title, xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="Confidence")
    axes[0, 0].set_ylabel("Accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return render_png(figure, context.images + ("; synthetic data" if context.synthetic else ""))


def table_of_counts(manifest: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Images per class (rows) and split (columns)."""
    return pd.crosstab(manifest["label"], manifest["split"]).reindex(
        index=list(names), columns=list(SPLITS), fill_value=0
    )
