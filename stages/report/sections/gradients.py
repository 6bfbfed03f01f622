"""Where the input gradient of each model points."""

from typing import Any

import matplotlib as mpl

from stages.core.paths import MODELS
from stages.report.blocks import Block, Figure, Text
from stages.report.formatting import class_label, metric
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.style import STYLE, make_figure, open_image, render_png, show_image, truncate


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Mean share of the squared input gradient in the central quarter of the image."""
    shares = model.table("gradients").sort_values("path")["central_share"].to_numpy(float)
    interval = results.intervals.mean(shares)
    return with_interval("central_gradient_share", shares.mean(), interval)


@mpl.rc_context(STYLE)
def figures(results: Results) -> dict[str, bytes]:
    """Original, and for each model the magnitude of the gradient of its margin there."""
    last = results.models[MODELS[-1]]  # its attack_eval has both models
    table = last.table("examples")
    columns, count = 1 + len(results.models), max(1, len(table))
    figure, axes = make_figure(2.1 * columns + 0.2, 2.0 * count + 0.5, count, columns)
    for axis in axes.flat:
        show_image(axis, None)
    for axis, (_, row) in zip(axes, table.iterrows(), strict=False):
        show_image(axis[0], open_image(last.folder / row["original"]))
        axis[0].set_ylabel(f"Label: {truncate(class_label(row['label']))}")
        for panel, model in zip(axis[1:], results.models, strict=True):
            file = row["original"].replace("original", f"gradient_{model}")
            show_image(panel, open_image(last.folder / file))
    heads = ("Original", *(model.label for model in results.models.values()))
    for panel, head in zip(axes[0], heads, strict=True):
        panel.set_title(head)
    note = "magnitude of the margin's gradient, white from its 99th percentile on"
    return {"gradients": render_png(figure, note + results.synthetic_images, in_git=False)}


def blocks(results: Results) -> list[Block]:
    """The figure, and the shares."""
    shares = "; ".join(
        f"{model.label} {metric(results.metrics[model.name], 'central_gradient_share')}"
        for model in results.models.values()
    )
    return [
        Figure(
            "gradients",
            "Test images and, for each model, the magnitude of the gradient of its margin there",
            "Which pixels an attacker would change first: the magnitude of the gradient of the "
            "margin, largest over the channels, scaled to its 99th percentile. It explains no "
            "decision of a model. The images are those of the last figure. Squares on a grid, or a "
            "bright corner, come from strides: on small images some layers read few positions.",
        ),
        Text(
            "Share of the squared gradient in the central quarter of the image area, mean of "
            f"n = {results.n} test images (25% if it were uniform): {shares}."
        ),
    ]


SECTION = Section("gradients", "Input gradients", blocks, metrics=metrics, figures=figures)
