"""The universal perturbation of each model."""

import matplotlib as mpl

from stages.report.blocks import Block, Figure, Items, Text
from stages.report.formatting import listed, metric
from stages.report.results import Results
from stages.report.section import Section
from stages.report.style import STYLE, make_figure, open_image, render_png, show_image

CASES = {"universal": "its own pattern", "universal_transfer": "that of the other model"}


@mpl.rc_context(STYLE)
def figures(results: Results) -> dict[str, bytes]:
    """The perturbations, amplified."""
    models = list(results.models.values())
    figure, axes = make_figure(2.6 * len(models) + 0.6, 2.9, 1, len(models))
    for axis, model in zip(axes[0], models, strict=True):
        show_image(axis, open_image(model.folder / "universal.png"))
        axis.set_title(model.label)
    note = f"amplified, mid gray is no change; {results.budget}"
    return {"universal": render_png(figure, note + results.synthetic_images, in_git=False)}


def sentences(results: Results) -> list[str]:
    """Per model how often the perturbations succeed, its own and that of the other model."""
    texts = []
    for model in results.models.values():
        values = results.metrics[model.name]
        rates = values.get("attack_success_rate", {})
        parts = [
            f"{metric(rates, attack)} under {words}"
            for attack, words in CASES.items()
            if attack in rates
        ]
        if parts:
            n = values["clean_correct"]
            texts.append(f"{model.label}: success rate {listed(parts)} (n = {n}).")
    return texts


def blocks(results: Results) -> list[Block]:
    """What it is, success rates, and a picture."""
    return [
        Text(
            "One pattern for all images, computed on the validation images: to use it, an attacker "
            "needs neither the image nor the model. It is also tried on the other model "
            "(transfer). Both count in the worst case; their accuracy stands above, with that "
            "of the other attacks."
        ),
        Items(sentences(results)),
        Figure(
            "universal",
            "The universal perturbation of each model as a picture, amplified",
            f"Universal perturbations within {results.budget}, amplified: mid gray is no change.",
        ),
    ]


SECTION = Section("universal", "Universal perturbation", blocks, figures=figures)
