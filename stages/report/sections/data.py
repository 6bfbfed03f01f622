"""The images: how many, of which classes, what they look like, and which files were excluded."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.core.dataset import SPLITS, STAINS
from stages.core.files import read_csv
from stages.core.paths import PLOTS, PROCESSED
from stages.report.blocks import Block, Details, Figure, Table, Text, head, row
from stages.report.formatting import class_label, percent
from stages.report.results import Results
from stages.report.section import Section
from stages.report.style import (
    GREEN,
    NEUTRAL,
    STYLE,
    make_figure,
    render_png,
    show_image,
    truncate,
)

STAIN_COLORS = dict(zip(STAINS, ("#E8A0A8", "#8A4B12", GREEN), strict=True))
MIN_SIZES = 4  # distinct sizes of the originals from which their distribution is drawn
EXAMPLES_PER_CLASS = 6
SHOWN_FILES = 100  # excluded ones
SHEETS = ("rejected", "duplicates", "crops")  # figures of preprocess


def class_examples(results: Results) -> dict[str, np.ndarray]:
    """Class -> uint8 (k, H, W, 3) from the training split, spread evenly over it."""
    dataset, examples = results.dataset, {}
    train = dataset.split_rows("train")
    for index, name in enumerate(dataset.classes):
        rows = train[dataset.labels[train] == index]
        count = min(len(rows), EXAMPLES_PER_CLASS)
        spread = np.linspace(0, max(0, len(rows) - 1), count).astype(int)
        examples[name] = dataset.images[rows[spread]]
    return examples


def figures(results: Results) -> dict[str, bytes]:
    """Examples of each class, and the numbers of images."""
    return {"classes": draw_classes(results), "overview": draw_overview(results)}


@mpl.rc_context(STYLE)
def draw_classes(results: Results) -> bytes:
    """One row of example images per class; a class may have fewer, or none."""
    images = class_examples(results)
    columns = max(1, *(len(examples) for examples in images.values()))
    figure, axes = make_figure(1.25 * columns + 0.6, 1.3 * len(images) + 0.25, len(images), columns)
    for axis_row, (name, examples) in zip(axes, images.items(), strict=True):
        for column, axis in enumerate(axis_row):
            show_image(axis, examples[column] if column < len(examples) else None)
        axis_row[0].set_ylabel(truncate(class_label(name)), fontweight="bold")
    side = results.dataset.image_size
    note = f"model input, {side} × {side} pixels{results.synthetic_images}"
    return render_png(figure, note, in_git=False)


@mpl.rc_context(STYLE)
def draw_overview(results: Results) -> bytes:
    """Images per class and split; sizes of the originals where they differ; estimated stains."""
    manifest, names = results.dataset.manifest, results.dataset.classes
    shorter = manifest[["width", "height"]].min(axis=1)
    sizes, stains = shorter.nunique() >= MIN_SIZES, results.transformation_zone
    panels = 1 + sizes + stains
    figure, axes = make_figure(3.3 * panels + 0.4, 1.5 + 0.42 * len(names), 1, panels)
    colors = dict(zip(SPLITS, NEUTRAL, strict=True))
    _stacked_bars(axes[0, 0], results.counts, colors, "Images per class and split")
    if sizes:
        axes[0, 1].hist(shorter, bins=20, color=NEUTRAL[1])
        axes[0, 1].set(title="Size of the originals", ylabel="Images")
        axes[0, 1].set_xlabel("Shorter side (pixels)")
    if stains:
        kinds = pd.crosstab(manifest["label"], manifest["stain_guess"])
        kinds = kinds.reindex(list(names), fill_value=0)
        kinds = kinds[[stain for stain in STAINS if stain in kinds]]
        _stacked_bars(axes[0, -1], kinds, STAIN_COLORS, "Estimated stain (from mean color)")
    return render_png(figure, results.synthetic_data.removeprefix("; "))


def _stacked_bars(axis: Axes, counts: pd.DataFrame, colors: dict[str, str], title: str) -> None:
    """A bar for each row, a segment for each column, with its number where it fits."""
    left, totals = np.zeros(len(counts)), counts.sum(axis=1)
    names = [truncate(f"{class_label(name)} ({total})", 24) for name, total in totals.items()]
    for column in counts:
        values, color = counts[column], colors[column]
        bars = axis.barh(range(len(names)), values, left=left, color=color, label=column)
        texts = [str(n) if n > 0.08 * totals.max() else "" for n in values]
        dark = np.dot(mpl.colors.to_rgb(color), (0.299, 0.587, 0.114)) < 0.4
        look: Any = {"label_type": "center", "fontsize": 8, "color": "white" if dark else "black"}
        axis.bar_label(bars, texts, **look)
        left += values.to_numpy()
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(title=title, xlabel="Images")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)


def charts(results: Results) -> dict[str, bytes]:
    """The contact sheets that preprocess drew."""
    return {name: (PLOTS / f"{name}.png").read_bytes() for name in SHEETS}


def excluded_files() -> pd.DataFrame:
    """path, reason."""
    return read_csv(PROCESSED / "rejected.csv", "preprocess", ("path", "reason"))


def description(results: Results) -> str:
    """How many images, groups, excluded files and duplicates; the leakage check."""
    data, excluded = results.data, len(excluded_files())
    groups, duplicates = data.get("groups"), data.get("duplicates")
    text = f"{results.counts.to_numpy().sum():,} images"
    if groups:
        text += (
            f" in {groups['total']:,} groups. A group is a patient where that is known "
            f"({groups['images_with_known_patient']:,} images), else what shows the same scene; no "
            "group is divided between training, validation and test"
        )
    text += f". {excluded:,} {'file was' if excluded == 1 else 'files were'} excluded"
    if duplicates:
        text += (
            f", {duplicates['copies']:,} of them exact duplicates. {duplicates['near']:,} pairs "
            "are near-duplicates (one photograph, resized or encoded again), "
            f"{duplicates['same_scene']:,} pairs other shots or crops of one scene"
        )
    text += "."
    if leakage := data.get("nearest_in_train"):
        text += " " + leakage_text(leakage)
    return text


def leakage_text(leakage: Mapping[str, Any]) -> str:
    """What the leakage check of preprocess found, next to what chance gives."""
    test, outliers = leakage["test"], leakage["outliers"]
    by_group = test["alike_by_group"]
    return (
        f"Leakage check: {percent(test['alike_share'])} of the test images are look-alikes of a "
        f"training image (correlation of 32 × 32 gray pixels ≥ {leakage['alike_from']}); in "
        f"{leakage['random_splits']} random splits by group it is {percent(by_group['mean'])} "
        f"[{percent(by_group['low'])}, {percent(by_group['high'])}] (mean and 99% interval), in "
        f"random splits by image {percent(test['alike_by_image'])}. "
        f"{percent(outliers['share'])} of all images are unusually close to one of another group, "
        f"by chance up to {percent(outliers['high'])}."
    )


def excluded_blocks() -> list[Block]:
    """Which files were excluded, and why."""
    table = excluded_files()
    if not len(table):
        return []
    title = "Excluded files. Data: data/processed/rejected.csv."
    if len(table) > SHOWN_FILES:
        title = (
            f"Excluded files: the first {SHOWN_FILES} of {len(table)} in "
            "data/processed/rejected.csv"
        )
    body = [row(file.path, file.reason) for file in table.head(SHOWN_FILES).itertuples()]
    sheet = Figure(
        "rejected",
        "Contact sheet: the first excluded files, each with its name and reason; gray where "
        "nothing could be decoded",
        "Excluded files, invalid ones first; gray where nothing could be decoded.",
    )
    return [Details("Excluded files", [sheet, Table(title, head("file", "reason"), body, "long")])]


def sheet_blocks(results: Results) -> list[Block]:
    """Which part of the images was kept, and which were taken for the same scene."""
    found: list[Block] = []
    if results.data.get("cropped"):
        detected = (
            "green, or red where no cervix was detected and the central square was kept."
            if results.p.data.crop == "cervix"
            else "the framed part of each image was kept."
        )
        alt = "Contact sheet: images with a frame around the part that was kept"
        found.append(Figure("crops", alt, f"Crop regions: {detected}"))
    duplicates = results.data.get("duplicates", {})
    differ = duplicates.get("conflicting_labels")
    if duplicates.get("near") or duplicates.get("same_scene") or differ:
        first = "those with different labels first, then " if differ else ""
        found.append(
            Figure(
                "duplicates",
                "Contact sheet: pairs of images taken for the same scene, with file, similarity "
                "and label",
                "Pairs of the same scene, near-duplicates among them, that were put into one "
                f"group, pair by pair, {first}lowest similarity first, where false positives are "
                "most likely.",
            )
        )
    return found


def blocks(results: Results) -> list[Block]:
    """Numbers, examples, contact sheets."""
    counts = results.counts
    labels = [class_label(name) for name in counts.index]
    body = []
    for name, numbers in zip([*labels, "all"], [*counts.to_numpy(), counts.sum()], strict=True):
        body.append(row(name, *(f"{n:,}" for n in numbers)))
    stains = (
        ", and the stain estimated from the mean color: pink counts as acetic acid or none, strong "
        "brown as Lugol’s iodine, green as a green filter; nothing is trained or evaluated on it."
    )
    return [
        Text(description(results)),
        Table("Images per class and split", head("class", *counts.columns), body),
        Figure(
            "classes",
            "Example images of the training split, one row per class: " + ", ".join(labels),
            "Training images as the model sees them, one row per class.",
        ),
        Figure(
            "overview",
            "Bar chart: images per class and split; the numbers are in the table above",
            "Images per class and split" + (stains if results.transformation_zone else "."),
        ),
        *([Details("Contact sheets", sheets)] if (sheets := sheet_blocks(results)) else []),
        *excluded_blocks(),
    ]


SECTION = Section("data", "Data", blocks, figures=figures, charts=charts)
