"""Calibration: do confidences tell how often predictions are correct?"""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from stages.core.predictions import (
    CLEAN,
    WORST,
    classes_of,
    is_correct,
    label_probabilities,
    select,
)
from stages.report.blocks import Block, Cell, Figure, Table, row
from stages.report.formatting import MODEL_LABELS, metric
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.sections.classes import clean_and_worst
from stages.report.style import COLORS, GRAY, LINES, STYLE, make_figure, render_png

BINS = 10  # of the reliability diagram, equal width
# Probabilities are clipped as on Kaggle: a class given 0 costs -ln 1e-15 = 34.5, not infinity.
MIN_PROBABILITY = 1e-15


def log_losses(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) minus the natural logarithm of the probability predicted for the label."""
    return -np.log(np.clip(label_probabilities(rows), MIN_PROBABILITY, 1))


def roc_auc(rows: pd.DataFrame) -> float | None:
    """Mean one-versus-rest area under the ROC curve over the classes in the rows.

    None if there is only one.
    """
    areas = []
    for name in classes_of(rows):
        members = rows["label"] == name
        if 0 < members.sum() < len(rows):
            areas.append(roc_auc_score(members, rows[f"p_{name}"]))
    return float(np.mean(areas)) if areas else None


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """Images binned by confidence, no empty bins.

    bin (center), confidence and accuracy (means), count.
    """
    confidence = rows["confidence"].to_numpy(float)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": (bins + 0.5) / BINS, "confidence": confidence})
    grouped = table.assign(accuracy=is_correct(rows).astype(float)).groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index()


def expected_calibration_error(rows: pd.DataFrame) -> float:
    """Mean over images of the distance of their bin's confidence and accuracy, in [0, 1].

    Naeini et al. 2015.
    """
    bins = reliability(rows)
    distance = (bins["confidence"] - bins["accuracy"]).abs()
    return float((bins["count"] * distance).sum() / len(rows))


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """reliability: clean and in the worst case."""
    parts = [
        reliability(rows).assign(model=model.name, attack=attack)
        for attack, rows in clean_and_worst(results, model)
    ]
    columns = ["model", "attack", "bin", "confidence", "accuracy", "count"]
    return {"reliability": pd.concat(parts)[columns]}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Log loss, AUC and expected calibration error on clean images; the last in the worst case."""
    clean = select(model.rows)
    losses, area = log_losses(clean), roc_auc(clean)
    return {
        **with_interval("log_loss", losses.mean(), results.intervals.mean(losses)),
        **({"auc": area} if area is not None else {}),
        "ece": expected_calibration_error(clean),
        "ece_worst": expected_calibration_error(results.worst(model)),
    }


@mpl.rc_context(STYLE)
def charts(results: Results) -> dict[str, bytes]:
    """Reliability diagrams: accuracy against confidence, clean and in the worst case."""
    table = results.plots["reliability"]
    cases = {CLEAN: "Clean images", WORST: f"Worst case ({results.budget})"}
    figure, axes = make_figure(6.4, 3.5, 1, 2, sharey=True)
    for axis, (attack, title) in zip(axes[0], cases.items(), strict=True):
        axis.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1, label="Perfect calibration")
        for model, rows in table[table["attack"] == attack].groupby("model", sort=False):
            x, y, color = rows["confidence"], rows["accuracy"], COLORS[model]
            axis.plot(x, y, LINES[model], color=color, label=MODEL_LABELS[model])
            size = 10 + 120 * rows["count"] / table["count"].max()
            axis.scatter(x, y, size, color=color, alpha=0.7, linewidths=0)
        axis.set(title=title, xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="Confidence")
    axes[0, 0].set_ylabel("Accuracy")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return {"reliability": render_png(figure, results.images_note + results.synthetic_data)}


def blocks(results: Results) -> list[Block]:
    """The diagrams and a table."""
    prior = results.metrics["prior_log_loss"]
    lines = (
        ("ece", "%", "Expected calibration error (10 bins), clean"),
        ("ece_worst", "%", "Expected calibration error, worst case"),
        ("log_loss", "", f"Log loss, clean (class prior: {prior:.3f})"),
        ("auc", "", "ROC AUC (one-vs-rest, macro), clean"),
        ("macro_f1", "", "Macro F1, clean"),
    )
    body = [
        row(name, *(metric(results.metrics[m], key, unit=unit) for m in results.models))
        for key, unit, name in lines
    ]
    labels = [Cell(m.label, "th", {"scope": "col"}) for m in results.models.values()]
    return [
        Figure(
            "reliability",
            "Accuracy against confidence, for clean images and in the worst case; a calibrated "
            "model follows the diagonal",
            "Reliability diagrams; larger dots hold more images. Points below the diagonal: "
            "overconfident. Attacks stop at the first misclassification, so confidence under "
            "attack is a lower bound.",
            "reliability.csv",
        ),
        Table(f"Calibration and ranking, n = {results.n} test images", [[Cell(""), *labels]], body),
    ]


SECTION = Section("calibration", "Calibration", blocks, tables, metrics, charts=charts)
