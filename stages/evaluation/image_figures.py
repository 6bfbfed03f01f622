"""The figures that show images: examples of the classes, and adversarial examples, as PNG bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from stages.core.budgets import format_budget
from stages.core.predictions import gradient_file
from stages.evaluation.formatting import MODEL_LABELS, attack_label, class_label
from stages.evaluation.style import (
    COLORS,
    GRAY,
    MAX_PNG_BYTES,
    STYLE,
    WRONG,
    make_figure,
    render_png,
    truncate,
)

HEADS = ("Original", "Perturbation", "Adversarial example")


@mpl.rc_context(STYLE)
def class_examples(images: Mapping[str, np.ndarray], *, synthetic: bool) -> bytes:
    """One row of example images per class. images: class -> uint8 (k, H, W, 3); a class may have fewer, or none."""
    columns = max(1, *(len(examples) for examples in images.values()))
    figure, axes = make_figure(1.25 * columns + 0.6, 1.3 * len(images) + 0.25, len(images), columns)
    for row, (name, examples) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, [*examples, *[None] * (columns - len(examples))], strict=True):
            _imshow(axis, image)
        row[0].set_ylabel(truncate(class_label(name)), fontweight="bold")
    side = next((examples.shape[1] for examples in images.values() if len(examples)), 0)
    note = f"model input, {side} × {side} pixels" + ("; synthetic images" if synthetic else "")
    return render_png(figure, note)


def _imshow(axis: Axes, image: np.ndarray | None) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if image is not None:
        axis.imshow(image, interpolation="nearest" if len(image) < 128 else "antialiased")


@mpl.rc_context(STYLE)
def adversarial_examples(
    table: pd.DataFrame, folder: Path, steps: int, norm: str, *, synthetic: bool
) -> bytes:
    """Original, amplified perturbation, adversarial example: one row each, fewer where they would pass MAX_PNG_BYTES.

    Args:
        table: examples.csv.
        folder: where the PNG files that it names lie.
        steps: of the attack.
        norm: of its budget.
        synthetic: whether the images are.
    """
    for count in range(len(table), 0, -1):
        drawn = _draw_examples(table.head(count), folder, steps, norm, synthetic=synthetic)
        if len(drawn) < MAX_PNG_BYTES or count == 1:
            return drawn
    figure, axes = make_figure(6.0, 1.2, 1, 1)
    _imshow(axes[0, 0], None)
    text = "No example: the model classifies no image correctly."
    axes[0, 0].text(0.5, 0.5, text, ha="center", transform=axes[0, 0].transAxes)
    return render_png(figure)


def _draw_examples(
    table: pd.DataFrame, folder: Path, steps: int, norm: str, *, synthetic: bool
) -> bytes:
    figure, axes = make_figure(6.4, 2.25 * len(table) + 0.5, len(table), 3)
    for number, (axis, (_, row)) in enumerate(zip(axes, table.iterrows(), strict=True)):
        original, adversarial = (_open(folder / row[name]) for name in ("original", "adversarial"))
        perturbation, factor = amplify(original, adversarial)
        for panel, image in zip(axis, (original, perturbation, adversarial), strict=True):
            _imshow(panel, image)
        for panel, kind in ((axis[0], "original"), (axis[2], "adversarial")):
            prediction, correct = (
                row[f"{kind}_prediction"],
                row[f"{kind}_prediction"] == row["label"],
            )
            text = f"{'✓' if correct else '✗'} {truncate(class_label(prediction))} ({row[f'{kind}_confidence']:.2f})"
            panel.set_title(text, color=COLORS["clean"] if correct else WRONG)
        axis[1].set_title(f"× {factor}", weight="normal", color=GRAY)
        axis[0].set_ylabel(f"Label: {truncate(class_label(row['label']))}")
        if number == 0:
            for panel, head in zip(axis, HEADS, strict=True):
                panel.annotate(
                    head,
                    (0.5, 1),
                    (0, 22),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    fontsize=10,
                    weight="bold",
                )
    first = table.iloc[0]
    note = f"prediction (confidence); {attack_label(first['attack'], steps)}, {format_budget(first['eps'], norm)}"
    note += f"; {len(original)} × {len(original)} pixels" + (
        "; synthetic images" if synthetic else ""
    )
    return render_png(figure, note)


@mpl.rc_context(STYLE)
def input_gradients(
    table: pd.DataFrame, folder: Path, models: Sequence[str], *, synthetic: bool
) -> bytes:
    """Original image, and for each model the magnitude of the gradient of its margin there: a row for each example.

    Args:
        table: examples.csv.
        folder: where the PNG files lie.
        models: whose gradients are among them.
        synthetic: whether the images are.
    """
    count = max(1, len(table))
    figure, axes = make_figure(
        2.1 * (1 + len(models)) + 0.2, 2.0 * count + 0.5, count, 1 + len(models)
    )
    for axis in axes.flat:
        _imshow(axis, None)
    for axis, (_, row) in zip(axes, table.iterrows(), strict=False):
        _imshow(axis[0], _open(folder / row["original"]))
        axis[0].set_ylabel(f"Label: {truncate(class_label(row['label']))}")
        for panel, model in zip(axis[1:], models, strict=True):
            _imshow(panel, _open(folder / gradient_file(row["original"], model)))
    for panel, head in zip(
        axes[0], ("Original", *(MODEL_LABELS[model] for model in models)), strict=True
    ):
        panel.set_title(head)
    note = "magnitude of the margin's gradient, white from its 99th percentile on"
    return render_png(figure, note + ("; synthetic images" if synthetic else ""))


@mpl.rc_context(STYLE)
def universal_perturbations(files: Mapping[str, Path], budget: str, *, synthetic: bool) -> bytes:
    """The universal perturbation of each model, amplified. files: model -> universal.png."""
    figure, axes = make_figure(2.6 * len(files) + 0.6, 2.9, 1, len(files))
    for axis, (model, file) in zip(axes[0], files.items(), strict=True):
        _imshow(axis, _open(file))
        axis.set_title(MODEL_LABELS[model])
    note = f"amplified, mid gray is no change; {budget}"
    return render_png(figure, note + ("; synthetic images" if synthetic else ""))


def _open(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def amplify(original: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, int]:
    """The perturbation of uint8 images (H, W, 3) on mid gray, and the largest integer factor that doesn't clip it."""
    delta = adversarial.astype(int) - original.astype(int)
    factor = max(1, 127 // max(1, int(np.abs(delta).max())))
    return np.clip(128 + factor * delta, 0, 255).astype(np.uint8), factor
