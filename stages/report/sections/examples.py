"""Adversarial examples of each model: original, perturbation, and what the model answers."""

from typing import Any

import matplotlib as mpl
import numpy as np

from stages.report.blocks import Block, Figure
from stages.report.formatting import class_label
from stages.report.results import ModelResults, Results
from stages.report.section import Section
from stages.report.style import (
    COLORS,
    GRAY,
    STYLE,
    WRONG,
    make_figure,
    open_image,
    render_png,
    show_image,
    truncate,
)

HEADS = ("Original", "Perturbation", "Adversarial example")


def figures(results: Results) -> dict[str, bytes]:
    """A figure for each model."""
    return {f"examples_{m.name}": draw_examples(m, results) for m in results.models.values()}


@mpl.rc_context(STYLE)
def draw_examples(model: ModelResults, results: Results) -> bytes:
    """Original, amplified perturbation, adversarial example: a row for each."""
    table = model.table("examples")
    if table.empty:
        figure, axes = make_figure(6.0, 1.2, 1, 1)
        show_image(axes[0, 0], None)
        text = "No example: the model classifies no image correctly."
        axes[0, 0].text(0.5, 0.5, text, ha="center", transform=axes[0, 0].transAxes)
        return render_png(figure)
    figure, axes = make_figure(6.4, 2.25 * len(table) + 0.5, len(table), 3)
    for axis, (_, row) in zip(axes, table.iterrows(), strict=True):
        original, adversarial = (
            open_image(model.folder / row[name]) for name in ("original", "adversarial")
        )
        perturbation, factor = amplify(original, adversarial)
        for panel, image in zip(axis, (original, perturbation, adversarial), strict=True):
            show_image(panel, image)
        for panel, kind in ((axis[0], "original"), (axis[2], "adversarial")):
            prediction, confidence = row[f"{kind}_prediction"], row[f"{kind}_confidence"]
            correct = prediction == row["label"]
            text = f"{truncate(class_label(prediction))} ({confidence:.2f})"
            color = COLORS["clean"] if correct else WRONG
            panel.set_title(f"{'✓' if correct else '✗'} {text}", color=color)
        axis[1].set_title(f"× {factor}", weight="normal", color=GRAY)
        axis[0].set_ylabel(f"Label: {truncate(class_label(row['label']))}")
    above: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
    for panel, head in zip(axes[0], HEADS, strict=True):
        panel.annotate(head, (0.5, 1), (0, 22), fontsize=10, weight="bold", **above)
    side = results.dataset.image_size
    note = (
        f"prediction (confidence); {results.attack_label(table['attack'].iloc[0])}, "
        f"{results.budget}; {side} × {side} pixels"
    )
    return render_png(figure, note + results.synthetic_images, in_git=False)


def amplify(original: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, int]:
    """The perturbation of uint8 images (H, W, 3) on mid gray, and its factor.

    The largest whole one that doesn't clip it.
    """
    delta = adversarial.astype(int) - original.astype(int)
    factor = max(1, 127 // max(1, int(np.abs(delta).max())))
    return np.clip(128 + factor * delta, 0, 255).astype(np.uint8), factor


def blocks(results: Results) -> list[Block]:
    """The figures."""
    return [
        Figure(
            f"examples_{model.name}",
            "Test images that the model classifies correctly, the perturbation of an attack, "
            "amplified, and the adversarial examples, with predicted class and confidence",
            f"{model.label}: original, perturbation (amplified, gray is none), adversarial "
            "example. Selected by median confidence among correctly classified images, not by the "
            "attack’s outcome. The attack ran all its steps, maximizing the margin of the wrong "
            "class.",
        )
        for model in results.models.values()
    ]


SECTION = Section("examples", "Adversarial examples", blocks, figures=figures)
