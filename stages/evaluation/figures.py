"""Pictures of the numbers, as PNG bytes; the only file that draws.

Fixed size, fixed resolution, no metadata: the same numbers give the same bytes. Colours are from Okabe and Ito (2008), told
apart with every common colour blindness; line styles and markers repeat the distinction. Small enough to be kept in git.
"""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from stages.core.dataset import STAINS

MODEL_NAMES = {"clean": "clean training", "adv": "adversarial training"}
COLOURS = {"clean": "#0072B2", "adv": "#D55E00"}
LINES = {"clean": "-", "adv": "--"}
MARKERS = {"clean": "o", "adv": "s"}
WRONG = "#B34D00"  # text of the second colour, darker: 4.5 to 1 against white
GREY, GREEN, SKY = "#555555", "#009E73", "#56B4E9"
STAIN_COLOURS = dict(zip(STAINS, ("#E8A0A8", "#8A4B12", GREEN), strict=True))
BUDGETS = {  # norm -> what eps is multiplied by on an axis, and the axis' name
    "linf": (255, "largest change of a pixel value, grey levels of 255"),
    "l2": (1, "Euclidean length of the change, pixel values from 0 to 1"),
}
LIMIT = 100_000  # bytes of a PNG
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def _png(figure: Figure) -> bytes:
    """The figure at the largest resolution, in true colour if possible, that keeps it below LIMIT; else the smallest."""
    canvas = FigureCanvasAgg(figure)
    for dpi in (150, 115, 90, 70):
        figure.set_dpi(dpi)
        canvas.draw()
        true_colour = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        drawn = _encoded(true_colour)
        if LIMIT < len(drawn) < 5 * LIMIT:  # 256 colours save at most that much
            drawn = _encoded(true_colour.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
        if len(drawn) < LIMIT:
            break
    return drawn


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")  # Pillow adds no metadata
    return file.getvalue()


def format_eps(eps: float, norm: str) -> str:
    """linf: 0.0313725 -> ``8/255``, other budgets in pixel units, ``0.01``; l2, the length of a whole change: ``0.5``."""
    levels = Fraction(eps * 255).limit_denominator(8)
    if norm != "linf" or abs(float(levels) - eps * 255) > 1e-3 * eps * 255:
        return f"{eps:.4g}"
    return f"{float(levels):g}/255"


def format_budget(eps: float, norm: str) -> str:
    """``±8/255`` (linf: each pixel value), ``0.5 (l2)`` (the whole change)."""
    return f"±{format_eps(eps, norm)}" if norm == "linf" else f"{format_eps(eps, norm)} ({norm})"


def _budget_axis(axis: Axes, ticks: Sequence[float], unit: str) -> None:
    """Logarithmic from the smallest positive tick, linear down to 0."""
    ticks = sorted({0.0, *ticks})
    axis.set_xscale("symlog", linthresh=ticks[1] if len(ticks) > 1 else 1, linscale=0.35)
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlim=(0, 1.12 * ticks[-1] or 1), xlabel=f"{unit} (logarithmic)")


def _figure(width: float, height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **options)


@mpl.rc_context(STYLE)
def classes(pictures: Mapping[str, np.ndarray]) -> bytes:
    """One row of example photographs per class. pictures: class -> uint8 (k, H, W, 3); a class may have fewer, or none."""
    columns = max(1, *(len(some) for some in pictures.values()))
    figure, axes = _figure(1.25 * columns + 0.6, 1.3 * len(pictures), len(pictures), columns)
    for row, (name, some) in zip(axes, pictures.items(), strict=True):
        for axis, picture in zip(row, [*some, *[None] * (columns - len(some))], strict=True):
            _show(axis, picture)
        row[0].set_ylabel(_short(name), fontweight="bold")
    return _png(figure)


def _show(axis: Axes, picture: np.ndarray | None) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if picture is not None:
        axis.imshow(picture, interpolation="nearest" if len(picture) < 128 else "antialiased")


def _short(text: str, length: int = 18) -> str:
    # A dollar sign would start a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


@mpl.rc_context(STYLE)
def counts(table: pd.DataFrame) -> bytes:
    """Photographs per class and split. table: one row per class, one column per split."""
    figure, axes = _figure(5.6, 0.9 + 0.55 * len(table), 1, 1)
    axis, left = axes[0, 0], np.zeros(len(table))
    for split, colour, text in zip(table.columns, (COLOURS["clean"], SKY, COLOURS["adv"]), "wkk", strict=False):
        bars = axis.barh([_short(name) for name in table.index], table[split], left=left, color=colour, label=split)
        labels = [f"{n}" if n > 0.05 * table.sum(axis=1).max() else "" for n in table[split]]
        axis.bar_label(bars, labels, label_type="center", color=text, fontsize=8)
        left += table[split].to_numpy()
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("photographs")
    figure.legend(loc="outside upper center", ncols=3)
    return _png(figure)


@mpl.rc_context(STYLE)
def overview(manifest: pd.DataFrame, names: Sequence[str]) -> bytes:
    """Sizes of the originals, and per class the stain guessed by colour. manifest: with label, width, height, stain_guess."""
    figure, axes = _figure(7.2, 3.0, 1, 2)
    sizes, stains = axes[0]
    found = manifest.groupby(["width", "height"]).size()
    width, height = (found.index.get_level_values(level) for level in ("width", "height"))
    sizes.scatter(width, height, 15 + 150 * found / found.max(), color=COLOURS["clean"], alpha=0.5, linewidths=0)
    largest = 1.1 * max(width.max(), height.max())
    sizes.set(
        title="Size", xlim=(0, largest), ylim=(0, largest), aspect="equal", xlabel="width, pixels", ylabel="height, pixels"
    )
    counts = pd.crosstab(manifest["label"], manifest["stain_guess"]).reindex(list(names), fill_value=0)
    left = np.zeros(len(counts))
    for stain in (name for name in STAINS if name in counts):
        stains.barh([_short(name) for name in counts.index], counts[stain], left=left, color=STAIN_COLOURS[stain], label=stain)
        left += counts[stain].to_numpy()
    stains.invert_yaxis()
    stains.grid(axis="y", visible=False)
    stains.set(title="Stain, guessed by colour", xlabel="photographs")
    figure.legend(*stains.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return _png(figure)


@mpl.rc_context(STYLE)
def training(curves: Mapping[str, pd.DataFrame]) -> bytes:
    """Accuracy above, loss below: clean training, the same model attacked, adversarial training. curves: model -> CSV rows."""
    panels = [
        ("clean", "Clean training", [("train", "train", SKY, ":"), ("val", "validation", COLOURS["clean"], "-")]),
        ("clean", "Clean training, attacked", [("val", "as it is", COLOURS["clean"], "-"), ("robust", "attacked", GREY, "--")]),
        ("adv", "Adversarial training", [("val", "as it is", COLOURS["adv"], "-"), ("robust", "attacked", GREY, "--")]),
    ]
    columns = {
        "train": ("train_accuracy", "train_loss"),
        "val": ("val_clean_accuracy", "val_loss"),
        "robust": ("val_robust_accuracy", "val_robust_loss"),
    }
    panels = [panel for panel in panels if panel[0] in curves]
    figure, axes = _figure(3.1 * len(panels), 4.6, 2, len(panels), sharex="col")
    for (above, below), (model, title, lines) in zip(axes.T, panels, strict=True):
        curve = curves[model]
        for kind, label, colour, style in lines:
            for axis, column in zip((above, below), columns[kind], strict=True):
                seen = curve[["epoch", column]].dropna() if column in curve else curve[["epoch"]].assign(none=0).iloc[:0]
                axis.plot(seen["epoch"], seen.iloc[:, 1], style, color=colour, label=label, marker="o" * (len(seen) == 1))
        for axis in (above, below):
            for epoch in curve.loc[curve["chosen"] == 1, "epoch"]:
                axis.axvline(epoch, color=GREEN, linewidth=1, label="chosen epoch")
        above.set(title=title, ylim=(0, 1))
        below.set(xlabel="epoch", ylim=(0, None))
        below.xaxis.get_major_locator().set_params(integer=True)
        above.legend(loc="best")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("loss")
    return _png(figure)


@mpl.rc_context(STYLE)
def robustness(table: pd.DataFrame, majority_rate: float, eps: float, norm: str) -> bytes:
    """Above: worst-case accuracy over the budget, with its interval. Below: attack by attack at the headline budget.

    table: rows of plots/robustness.csv.
    """
    here = table[np.isclose(table["eps"], eps, rtol=1e-4)]
    attacks = [*(name for name in dict.fromkeys(here["attack"]) if name != "worst"), "worst"]
    figure, axes = _figure(6.4, 4.6 + 0.24 * len(attacks), 2, 1, height_ratios=[3.2, 0.6 + 0.24 * len(attacks)])
    above, below = axes[:, 0]
    scale, unit = BUDGETS[norm]
    _budget_axis(above, table["eps"] * scale, unit)
    for shift, (model, rows) in zip((-0.16, 0.16), table.groupby("model", sort=False), strict=False):
        worst, colour = rows[rows["attack"] == "worst"], COLOURS[model]
        above.fill_between(worst["eps"] * scale, worst["low"], worst["high"], color=colour, alpha=0.18, linewidth=0)
        style = {"marker": MARKERS[model], "color": colour, "label": MODEL_NAMES[model]}
        above.plot(worst["eps"] * scale, worst["accuracy"], LINES[model], **style)
        of = here[here["model"] == model]
        place = np.array([attacks.index(name) for name in of["attack"]]) + shift
        below.hlines(place, of["low"], of["high"], color=colour, alpha=0.45, linewidth=3)
        below.plot(of["accuracy"], place, MARKERS[model], color=colour, markersize=5.5)
    for line in (above.axhline, below.axvline):
        line(majority_rate, color=GREY, linewidth=1, linestyle=":", label="always the commonest class")
    above.set(ylim=(0, 1), ylabel="share of photographs still right", title="Worst case over all attacks")
    tried = here.groupby("attack")["count"].min()
    names = {"worst": "worst case"} | {name: f"{name} (n = {n})" for name, n in tried.items() if n < tried.max()}
    below.set_yticks(range(len(attacks)), [names.get(name, name) for name in attacks])
    below.set(xlim=(0, 1), ylim=(len(attacks) - 0.4, -0.6), title=f"Attack by attack at {format_budget(eps, norm)}")
    below.set_xlabel("share of photographs still right")
    below.grid(axis="y", visible=False)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3.2)
    return _png(figure)


@mpl.rc_context(STYLE)
def minimum_eps(table: pd.DataFrame, norm: str) -> bytes:
    """Share of the photographs changed within each budget, with its interval. table: rows of plots/minimum_eps.csv."""
    figure, axes = _figure(6.4, 3.4, 1, 1)
    axis, (scale, unit) = axes[0, 0], BUDGETS[norm]
    tried = table["eps"][table["eps"] > 0] * scale
    powers = np.arange(np.floor(np.log2(tried.min())), np.ceil(np.log2(tried.max())) + 1) if len(tried) else []
    _budget_axis(axis, [2.0**k for k in powers], unit)
    for model, rows in table.groupby("model", sort=False):
        rows = pd.concat([rows, rows.tail(1).assign(eps=axis.get_xlim()[1] / scale)])  # beyond the last step nothing changes
        eps, label = rows["eps"] * scale, f"{MODEL_NAMES[model]} (n = {rows['count'].iloc[0]})"
        axis.fill_between(eps, rows["low"], rows["high"], step="post", color=COLOURS[model], alpha=0.18, linewidth=0)
        axis.step(eps, rows["changed"], LINES[model], where="post", color=COLOURS[model], label=label)
    axis.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="half of them")
    axis.set(ylim=(0, 1.02), ylabel="share changed within the budget")
    figure.legend(loc="outside lower center", ncols=3, handlelength=3.2)
    return _png(figure)


@mpl.rc_context(STYLE)
def corruptions(table: pd.DataFrame) -> bytes:
    """Accuracy under each defect and severity, one panel per model, with intervals. table: rows of plots/corruptions.csv."""
    models = list(dict.fromkeys(table["model"]))
    severities = sorted(set(table["severity"]) - {0})
    shades = {severity: 0.25 + 0.6 * severity / max(severities) for severity in severities}
    figure, axes = _figure(6.4, 2.4 * len(models) + 0.5, len(models), 1, sharex=True)
    for axis, model in zip(axes[:, 0], models, strict=True):
        rows = table[table["model"] == model]
        without, defects = rows[rows["severity"] == 0], rows[rows["severity"] > 0]
        names = list(dict.fromkeys(defects["corruption"]))
        for shift, severity in zip(np.linspace(-0.26, 0.26, len(severities)), severities, strict=True):
            of = defects[defects["severity"] == severity]
            place = np.array([names.index(name) for name in of["corruption"]]) + shift
            axis.bar(place, of["accuracy"], 0.24, color=COLOURS[model], alpha=shades[severity])
            axis.vlines(place, of["low"], of["high"], color="#333333", linewidth=1)
        share, label = without["accuracy"].iloc[0], "the same photographs as they are"
        same = axis.axhline(share, color=GREY, linestyle="--", linewidth=1.2, label=label)
        axis.set(title=f"{MODEL_NAMES[model].capitalize()} (n = {rows['count'].max()})", ylim=(0, 1.02))
        axis.set(xticks=range(len(names)), xticklabels=[_short(name.replace("_", " ")) for name in names])
        axis.set_ylabel("share right")
        axis.grid(axis="x", visible=False)
    bars = [Patch(color=GREY, alpha=alpha, label=f"severity {severity}") for severity, alpha in shades.items()]
    figure.legend(handles=[*bars, same], loc="outside lower center", ncols=4)
    return _png(figure)


@mpl.rc_context(STYLE)
def reliability(table: pd.DataFrame) -> bytes:
    """Accuracy against confidence, without attack and in the worst case. table: rows of plots/reliability.csv."""
    cases = {"none": "as they are", "worst": "attacked"}
    figure, axes = _figure(6.4, 3.3, 1, 2, sharey=True)
    for axis, (attack, title) in zip(axes[0], cases.items(), strict=True):
        axis.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="confidence = accuracy")
        for model, rows in table[table["attack"] == attack].groupby("model", sort=False):
            axis.plot(rows["confidence"], rows["accuracy"], LINES[model], color=COLOURS[model], label=MODEL_NAMES[model])
            size = 10 + 120 * rows["count"] / table["count"].max()
            axis.scatter(rows["confidence"], rows["accuracy"], size, color=COLOURS[model], alpha=0.7, linewidths=0)
        axis.set(title=f"Photographs {title}", xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence of the model")
    axes[0, 0].set_ylabel("share that is right")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return _png(figure)


@mpl.rc_context(STYLE)
def examples(table: pd.DataFrame, folder: Path, norm: str, at_most: int = 3) -> bytes:
    """Original, amplified change, adversarial picture: one row per example, fewer where they would pass LIMIT.

    table: rows of examples.csv; folder: where the PNG files that it names lie.
    """
    for count in range(min(at_most, len(table)), 0, -1):
        drawn = _examples(table.head(count), folder, norm)
        if len(drawn) < LIMIT or count == 1:
            return drawn
    figure, axes = _figure(6.0, 1.2, 1, 1)
    _show(axes[0, 0], None)
    axes[0, 0].text(0.5, 0.5, "No example: the model gets no photograph right.", ha="center", transform=axes[0, 0].transAxes)
    return _png(figure)


def _examples(table: pd.DataFrame, folder: Path, norm: str) -> bytes:
    figure, axes = _figure(6.4, 2.35 * len(table), len(table), 3)
    for axis, (_, row) in zip(axes, table.iterrows(), strict=True):
        original, adversarial = (_open(folder / row[name]) for name in ("original", "adversarial"))
        change, factor = amplified(original, adversarial)
        for place, picture in zip(axis, (original, change, adversarial), strict=True):
            _show(place, picture)
        for place, kind in ((axis[0], "original"), (axis[2], "adversarial")):
            answer, good = row[f"{kind}_prediction"], row[f"{kind}_prediction"] == row["label"]
            title = f"“{_short(answer)}”, {row[f'{kind}_confidence']:.0%} sure\n{'right' if good else 'wrong'}"
            place.set_title(title, color=COLOURS["clean"] if good else WRONG)
        budget = f"{row['attack']}, at most {format_budget(row['eps'], norm)}"
        axis[1].set_title(f"+ change \N{MULTIPLICATION SIGN} {factor}\n{budget}", weight="normal", color=GREY)
        axis[0].set_ylabel(f"label: {_short(row['label'])}")
    return _png(figure)


def _open(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def amplified(original: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, int]:
    """uint8 (H, W, 3) change between two such pictures on mid grey, and the whole factor that makes it fill the range."""
    change = adversarial.astype(int) - original.astype(int)
    factor = max(1, 127 // max(1, int(np.abs(change).max())))
    return np.clip(128 + factor * change, 0, 255).astype(np.uint8), factor


def table_of_counts(manifest: pd.DataFrame, names: Sequence[str], splits: Sequence[str]) -> pd.DataFrame:
    """Photographs per class (rows) and split (columns)."""
    return pd.crosstab(manifest["label"], manifest["split"]).reindex(index=list(names), columns=list(splits), fill_value=0)
