"""Randomized smoothing: a lower and an upper bound of one classifier's robustness, on one axis."""

from typing import Any

import matplotlib as mpl
import numpy as np

from stages.report.blocks import Block, Details, Figure, Items, Table, Text, grouped_head, row
from stages.report.formatting import capitalized, metric
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.style import COLORS, GREEN, PURPLE, STYLE, make_figure, render_png

BOUNDS = {"certified_accuracy": "certified", "smoothed_accuracy_pgd": "not broken by PGD"}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Certified and attacked accuracy at each radius; abstention rate and σ.

    Certified: the label is, within the radius. Attacked: the smoothed classifier isn't sure of
    another class, neither without attack nor where PGD led. Between them lies its true accuracy.
    """
    if not results.p.attack_eval.smoothing_sigma:
        return {}
    rows = model.table("smoothing").sort_values(["radius", "path"])
    bounds: dict[str, dict[str, float]] = {name: {} for name in BOUNDS}
    for radius, images in rows.groupby("radius"):
        certified_radius = images["certified_radius"].to_numpy()
        certified = (certified_radius >= radius) & (certified_radius > 0)
        wrong = (images["prediction"] != images["label"]) & (images["abstains"] == 0)
        for name, hits in zip(BOUNDS, (certified, ~wrong.to_numpy()), strict=True):
            interval = results.intervals.proportion(hits)
            bounds[name] |= with_interval(f"{radius:g}", hits.mean(), interval)
    hesitant = rows.loc[rows["radius"] == 0, "abstains"].to_numpy(bool)
    interval = results.intervals.proportion(hesitant)
    return {
        "smoothing_sigma": results.p.attack_eval.smoothing_sigma,
        **bounds,
        **with_interval("abstention_rate", hesitant.mean(), interval),
    }


def radii(values: dict[str, Any]) -> list[str]:
    """The keys of the radii, ascending."""
    return [key for key in values["certified_accuracy"] if not key.endswith(("_low", "_high"))]


@mpl.rc_context(STYLE)
def charts(results: Results) -> dict[str, bytes]:
    """Both bounds against the radius, a panel per model."""
    if not results.p.attack_eval.smoothing_sigma:
        return {}
    figure, axes = make_figure(6.6, 3.2, 1, len(results.models), sharey=True)
    for axis, model in zip(axes[0], results.models.values(), strict=True):
        values, curves = results.metrics[model.name], []
        keys = radii(values)
        x = [float(key) for key in keys]
        styles = (("-", "^", GREEN), ("--", "v", PURPLE))
        for (name, label), (line, marker, color) in zip(BOUNDS.items(), styles, strict=True):
            y, low, high = (
                np.array([values[name][key + end] for key in keys]) for end in ("", "_low", "_high")
            )
            bars: Any = {"capsize": 3, "elinewidth": 1, "marker": marker, "color": color}
            ends = np.maximum([y - low, high - y], 0)
            axis.errorbar(x, y, ends, None, line, label=capitalized(label), **bars)
            curves.append(y)
        band: Any = {"color": COLORS[model.name], "alpha": 0.15, "linewidth": 0}
        axis.fill_between(x, *curves, label="True accuracy lies here", **band)
        axis.set(title=model.label, ylim=(0, 1.02), xticks=x, xlabel="Radius (L2)")
    axes[0, 0].set_ylabel("Accuracy of the smoothed model")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, handlelength=3.2)
    return {"smoothing": render_png(figure, results.chart_note)}


def sentences(results: Results) -> list[str]:
    """Per model the bounds at the largest radius, and how often it abstains."""
    texts = []
    for model in results.models.values():
        values = results.metrics[model.name]
        last = radii(values)[-1]
        low, high = (metric(values[name], last) for name in BOUNDS)
        texts.append(
            f"{model.label}: at least {low} and at most {high} of the images keep their label "
            f"within L2 {last}; without attack it abstains on {metric(values, 'abstention_rate')}."
        )
    return texts


def blocks(results: Results) -> list[Block]:
    """What is bounded, the figure and its numbers; nothing where it is off."""
    if not results.p.attack_eval.smoothing_sigma:
        return []
    models = list(results.models.values())
    config = models[0].document("smoothing_settings")
    keys = radii(results.metrics[models[0].name])
    body = [
        row(key, *(metric(results.metrics[m.name][name], key) for m in models for name in BOUNDS))
        for key in keys
    ]
    title = (
        f"Bounds of the smoothed model's accuracy, with {results.level} confidence intervals over "
        f"the {results.n} test images."
    )
    labels = [model.label for model in models]
    columns = grouped_head(["radius (L2)"], labels, list(BOUNDS.values()))
    return [
        Text(
            "Attacks give upper bounds of robustness; this is a lower one, of another classifier: "
            "the smoothed model answers with the class that the model gives most copies of an "
            f"image with Gaussian noise, σ = {config['sigma']:g} (Cohen et al., arXiv:1902.02918). "
            f"{config['copies']} copies of each image certify its label within a radius; each "
            f"certificate is wrong with a probability of at most {config['alpha']:g}, so that "
            f"at most {config['alpha'] * results.n:.2g} of {results.n} are expected to be. Above "
            f"it, PGD on the smoothed model ({config['attack_steps']} steps, the mean softmax of "
            f"{config['attack_copies']} copies) within the same radius."
        ),
        Figure(
            "smoothing",
            "Certified accuracy and accuracy under PGD of the smoothed model against the radius. "
            + " ".join(sentences(results)),
            "Lower bound (certified) and upper bound (PGD) of the smoothed model's accuracy within "
            f"a radius; bars are {results.level} confidence intervals.",
        ),
        Items(sentences(results)),
        Details("The bounds at each radius", [Table(title, columns, body)]),
        Text(
            "The certificate is about the smoothed model, which needs many copies for one answer "
            "and is less accurate, not about the model itself; and about L2, not L∞. The intervals "
            "are about the test images and contain no variance of the noise."
        ),
    ]


SECTION = Section(
    "smoothing", "Randomized smoothing: a lower bound", blocks, metrics=metrics, charts=charts
)
