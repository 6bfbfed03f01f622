"""The charts: the same bytes for the same numbers, small, and what they show is in the tables."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from stages.evaluation import figures, style
from stages.evaluation.figures import Context
from stages.evaluation.selection import WORST

from tests.helpers.prediction_tables import CLASSES, EPS, GRID, make_training
from tests.helpers.reports import make_report

STEPS = {"bim": 5, "pgd": 10}
CONTEXT = Context(
    EPS, "linf", 0.4, "n = 120 test images, 120 patients", "95% CI; synthetic data", True
)
REAL = dataclasses.replace(CONTEXT, note="95% CI", synthetic=False)
L2 = dataclasses.replace(CONTEXT, norm="l2")
ATTACKED = {
    "clean": "under attack: PGD-5, L∞, ε = 8/255, n = 32",
    "adv": "under attack: PGD-5, L∞, ε = 8/255, n = 64",
}


def make_manifest(classes=CLASSES) -> pd.DataFrame:
    rng, n = np.random.default_rng(0), 60
    return pd.DataFrame(
        {
            "label": rng.choice(classes, n),
            "split": rng.choice(["train", "val", "test"], n),
            "width": rng.integers(90, 200, n),
            "height": 200,
            "stain_guess": rng.choice(["acetic acid or none", "green filter"], n),
        }
    )


def curves_of(models) -> dict[str, pd.DataFrame]:
    return {model: make_training() for model in models}


CHARTS: dict[str, Callable] = {
    "robustness": lambda report, context: figures.robustness(
        report.tables["robustness"], STEPS, context
    ),
    "training": lambda report, context: figures.training(
        curves_of(report.evaluated), ATTACKED, context
    ),
    "overview": lambda report, context: figures.overview(
        make_manifest(), CLASSES, stains=True, synthetic=context.synthetic
    ),
    "minimum_eps": lambda report, context: figures.minimum_eps(
        report.tables["minimum_eps"], context
    ),
    "corruptions": lambda report, context: figures.corruptions(
        report.tables["corruptions"], context
    ),
    "reliability": lambda report, context: figures.reliability(
        report.tables["reliability"], context
    ),
}


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_is_repeatable_small_and_without_metadata(chart):
    first, second = (CHARTS[chart](make_report(), CONTEXT) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    assert len(first) < style.MAX_PNG_BYTES


@pytest.mark.parametrize("chart", CHARTS)
def test_synthetic_data_is_named_in_every_chart_and_real_data_in_none(chart, rendered):
    for context in (CONTEXT, REAL):
        CHARTS[chart](make_report(), context)
    assert ["synthetic" in drawn.note for drawn in rendered] == [True, False]


@pytest.mark.parametrize("models", [("clean",), ("adv",)])
@pytest.mark.parametrize("chart", CHARTS)
def test_chart_of_a_single_model(chart, models, rendered):
    CHARTS[chart](make_report(models), CONTEXT)
    label = {"clean": "Adversarial fine-tuning", "adv": "Standard training"}[models[0]]
    assert not any(label in text for text in rendered[0].texts)


@pytest.mark.parametrize("chart", ["robustness", "minimum_eps", "reliability"])
def test_l2_budget_is_not_written_in_fractions_of_255(chart, rendered):
    CHARTS[chart](make_report(), L2)
    texts = rendered[0].texts
    assert not [text for text in texts if "255" in text or "∞" in text]
    assert [text for text in texts if "L2" in text]


def test_robustness_curve_is_the_worst_case_of_the_table(rendered):
    table = make_report().tables["robustness"]
    figures.robustness(table, STEPS, CONTEXT)
    curve, attacks = rendered[0].axes
    lines = {line.get_label(): line for line in curve.lines}
    for model, label in (("clean", "Standard training"), ("adv", "Adversarial fine-tuning")):
        worst = table[(table["model"] == model) & (table["attack"] == WORST)]
        assert lines[label].get_ydata() == pytest.approx(worst["accuracy"])
        assert lines[label].get_xdata() == pytest.approx(worst["eps"] * 255)
    assert "Majority class (40.0%)" in lines
    assert curve.get_ylim() == attacks.get_xlim() == (0, 1)


def test_every_attack_is_shown_with_its_interval(rendered):
    table = make_report().tables["robustness"]
    figures.robustness(table, STEPS, CONTEXT)
    axis = rendered[0].axes[1]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [
        "Clean", "Uniform noise", "Gaussian noise", "FGSM", "BIM-5", "PGD-10", "Universal", "Ensemble (apgd)", "Worst case",
    ]  # fmt: skip
    here = table[np.isclose(table["eps"], EPS, rtol=1e-4) | (table["attack"] == "none")]
    texts = [text.get_text() for text in axis.texts]
    assert len(texts) == len(here)
    for row in here.itertuples():
        assert f"{100 * row.accuracy:.1f}% [{100 * row.low:.1f}, {100 * row.high:.1f}]" in texts
    markers = [line for line in axis.lines if line.get_marker() in style.MARKERS.values()]
    assert len(markers) == len(here)


@pytest.mark.parametrize("grid", [[0.0, *GRID], [0.0, EPS], [0.0, 0.001, 0.002, 0.5]])
def test_ticks_of_eps_keep_both_ends_and_do_not_touch(grid):
    axis = style.make_figure(4, 3, 1, 1)[1][0, 0]
    figures._eps_axis(axis, [eps * 255 for eps in grid], "linf")
    ticks = list(axis.get_xticks())
    assert (ticks[0], ticks[-1]) == (0.0, pytest.approx(grid[-1] * 255))
    assert min(np.diff(ticks)) > 0.06 * ticks[-1]


def test_training_chart_marks_the_selected_epoch(rendered):
    curves = curves_of(("clean", "adv"))
    figures.training(curves, ATTACKED, CONTEXT)
    assert "★ selected epoch" in rendered[0].note
    assert set(ATTACKED.values()) <= set(rendered[0].texts)
    for axis, curve in zip(rendered[0].axes[:2], curves.values(), strict=True):
        stars = [line for line in axis.lines if line.get_marker() == "*"]
        assert [list(star.get_xdata()) for star in stars] == [[11]] * 3
        lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        assert lines["Training"] == curve["train_accuracy"].tolist()
        assert lines["Validation, clean"] == curve["val_clean_accuracy"].tolist()
        assert lines["Validation under attack"] == curve["val_robust_accuracy"].tolist()


def test_training_chart_does_without_validation_under_attack():
    curve = make_training().drop(columns=["val_robust_accuracy", "val_robust_loss"])
    assert figures.training({"clean": curve}, ATTACKED, CONTEXT).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("stains", "equal_sizes", "panels"), [(True, False, 3), (False, False, 2), (False, True, 1)]
)
def test_overview_shows_stains_and_sizes_only_where_they_mean_something(
    stains, equal_sizes, panels, rendered
):
    manifest = make_manifest()
    manifest = manifest.assign(width=100) if equal_sizes else manifest
    figures.overview(manifest, CLASSES, stains=stains, synthetic=True)
    assert len(rendered[0].axes) == panels
    assert any("stain" in text for text in rendered[0].texts) == stains
    lengths = [patch.get_width() for patch in rendered[0].axes[0].patches]
    assert sum(lengths) == len(manifest)
    assert lengths[:3] == figures.table_of_counts(manifest, CLASSES)["train"].tolist()


def test_classes_of_the_same_label_have_a_bar_each(rendered):
    long = "a name of more than 24 characters"
    names = (f"{long} 1", f"{long} 2")
    figures.overview(make_manifest(names), names, stains=False, synthetic=True)
    assert len({patch.get_y() for patch in rendered[0].axes[0].patches}) == 2


def test_counts_have_a_row_for_classes_without_images():
    counts = figures.table_of_counts(make_manifest(("a", "b")), ("a", "b", "empty"))
    assert counts.loc["empty"].tolist() == [0, 0, 0]
    assert list(counts) == ["train", "val", "test"]
    assert counts.to_numpy().sum() == 60
    manifest = make_manifest(("a $ sign", "b"))
    assert figures.overview(
        manifest, ("a $ sign", "b", "empty"), stains=False, synthetic=True
    ).startswith(b"\x89PNG")


def test_minimum_eps_chart_steps_through_the_table(rendered):
    table = make_report().tables["minimum_eps"]
    figures.minimum_eps(table, CONTEXT)
    lines = {line.get_label(): line for line in rendered[0].axes[0].lines}
    for model, label in (("clean", "Standard training"), ("adv", "Adversarial fine-tuning")):
        rows = table[table["model"] == model]
        line = lines[f"{label} (n = {rows['count'].iloc[0]})"]
        assert line.get_ydata()[:-1] == pytest.approx(rows["changed"])
        assert line.get_xdata()[:-1] == pytest.approx(rows["eps"] * 255)
        assert line.get_drawstyle() == "steps-post"


def test_minimum_eps_chart_of_an_empty_table():
    empty = make_report().tables["minimum_eps"].iloc[:0]
    assert figures.minimum_eps(empty, CONTEXT).startswith(b"\x89PNG")


def test_corruption_bars_are_the_accuracies_of_the_table(rendered):
    table = make_report().tables["corruptions"]
    figures.corruptions(table, CONTEXT)
    for axis, model in zip(rendered[0].axes, ("clean", "adv"), strict=True):
        rows = table[table["model"] == model]
        heights = sorted(patch.get_height() for patch in axis.patches)
        assert heights == pytest.approx(sorted(rows.loc[rows["severity"] > 0, "accuracy"]))
        (clean,) = (line for line in axis.lines if line.get_label() == "Clean")
        assert clean.get_ydata()[0] == rows.loc[rows["severity"] == 0, "accuracy"].item()
    assert [label.get_text() for label in rendered[0].axes[-1].get_xticklabels()] == [
        "blur",
        "glare",
    ]


def test_reliability_diagram_shows_clean_and_worst_case(rendered):
    table = make_report().tables["reliability"]
    figures.reliability(table, CONTEXT)
    axes = rendered[0].axes
    assert [axis.get_title() for axis in axes] == ["Clean images", "Worst case (L∞, ε = 8/255)"]
    for axis, attack in zip(axes, ("none", WORST), strict=True):
        for line, model in zip(axis.lines[1:], ("clean", "adv"), strict=True):
            rows = table[(table["model"] == model) & (table["attack"] == attack)]
            assert list(line.get_xdata()) == rows["confidence"].tolist()
            assert list(line.get_ydata()) == rows["accuracy"].tolist()
