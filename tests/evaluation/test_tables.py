"""The tables in plots/: what a row holds, and its interval."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from stages.evaluation.intervals import wilson_interval
from stages.evaluation.metrics import expected_calibration_error, recalls
from stages.evaluation.selection import WORST, select_predictions, worst_case_predictions
from stages.evaluation.tables import (
    attacked_corruptions_table,
    confusion_table,
    corruptions_table,
    minimum_eps_table,
    per_class_table,
    plot_tables,
    reliability_table,
    robustness_table,
)

from tests.helpers.prediction_tables import (
    CLASSES,
    EPS,
    GRID,
    make_calibration,
    make_corruptions,
    make_minimum_eps,
    make_table,
    rows,
)
from tests.helpers.reports import evaluation_context


def test_robust_accuracy_never_increases_and_starts_at_clean_accuracy():
    table = make_table("adv")
    curve = robustness_table("adv", table, evaluation_context(table))
    worst = curve[curve["attack"] == WORST]
    assert list(worst["eps"]) == [0.0, *GRID]
    assert (worst["accuracy"].diff().dropna() <= 0).all()
    assert worst["accuracy"].iloc[0] == curve.loc[curve["attack"] == "none", "accuracy"].item()
    assert ((curve["low"] <= curve["accuracy"]) & (curve["accuracy"] <= curve["high"])).all()


def test_confusion_matrix_equals_scikit_learn():
    table = make_table("clean", 200, seed=3)
    cells, clean = (
        confusion_table("clean", table, evaluation_context(table)),
        select_predictions(table),
    )
    counts = cells.query("attack == 'none'")["count"].to_numpy().reshape(3, 3)
    assert (counts == sk.confusion_matrix(clean["label"], clean["prediction"])).all()


def test_per_class_and_reliability_tables_agree_with_the_metrics():
    table = make_table("clean", 200, seed=3)
    context = evaluation_context(table)
    per_class, bins = (
        per_class_table("clean", table, context),
        reliability_table("clean", table, context),
    )
    for attack, selected in (
        ("none", select_predictions(table)),
        (WORST, worst_case_predictions(table, EPS)),
    ):
        of_attack = per_class[per_class["attack"] == attack]
        assert dict(zip(of_attack["class"], of_attack["recall"], strict=True)) == recalls(selected)
        assert (
            (of_attack["low"] <= of_attack["recall"]) & (of_attack["recall"] <= of_attack["high"])
        ).all()
        of_attack = bins[bins["attack"] == attack]
        gap = (
            of_attack["count"] * (of_attack["confidence"] - of_attack["accuracy"]).abs()
        ).sum() / 200
        assert gap == pytest.approx(expected_calibration_error(selected))


def test_minimum_eps_curve_is_of_correct_images_and_ends_at_the_largest_eps():
    logits = (
        pd.get_dummies([0, 0, 0, 0, 1]).reindex(columns=range(3), fill_value=False).to_numpy() * 4.0
    )
    table = rows([0] * 5, logits)
    minimum_eps = pd.DataFrame(
        {"path": table["path"], "eps": [0.02, 0.01, 0.02, 0.25, 0.0], "found": [1, 1, 1, 0, 1]}
    )
    curve = minimum_eps_table("clean", table, minimum_eps, evaluation_context(table))
    assert list(zip(curve["eps"], curve["changed"], strict=True)) == [
        (0, 0),
        (0.01, 0.25),
        (0.02, 0.75),
        (0.25, 0.75),
    ]
    assert set(curve["count"]) == {4}
    assert (curve["low"].iloc[2], curve["high"].iloc[2]) == wilson_interval(0.75, 4, 0.95)
    empty = minimum_eps_table("clean", table, minimum_eps.iloc[4:], evaluation_context(table))
    assert empty.empty
    assert list(empty) == list(curve)


def test_corruptions_are_compared_with_the_same_clean_images():
    logits = pd.get_dummies([0, 1, 1, 1, 2]).to_numpy() * 4.0
    table = rows([0, 0, 1, 1, 2], logits)
    corrupted = table.iloc[:4][["path", "label"]].assign(
        corruption="blur", severity=1, attack="none", confidence=0.9
    )
    corrupted["prediction"] = [CLASSES[k] for k in (0, 1, 2, 2)]
    result = corruptions_table("clean", table, corrupted, evaluation_context(table))
    cells = result[["corruption", "severity", "accuracy", "count"]]
    assert cells.to_dict("split")["data"] == [["none", 0, 0.75, 4], ["blur", 1, 0.25, 4]]
    assert (result["low"].iloc[1], result["high"].iloc[1]) == wilson_interval(0.25, 4, 0.95)


def test_plot_tables_name_their_model_and_miss_no_value():
    table = make_table("adv", 60)
    extras = make_calibration(table), make_minimum_eps(table), make_corruptions(table)
    named = plot_tables("adv", table, *extras, evaluation_context(table))
    for name, rows_ in named.items():
        assert (rows_["model"] == "adv").all(), name
        assert not rows_.isna().any(axis=None), name


def test_attacked_corruptions_are_compared_with_the_same_corruption_without_attack():
    table = rows([0, 0, 1, 1], np.eye(3)[[0, 0, 1, 1]] * 4.0)
    cases = {
        ("blur", 1, "none"): (0, 0, 1, 1),
        ("blur", 2, "none"): (0, 0, 1, 0),
        ("blur", 2, "pgd"): (0, 1, 0, 0),
    }
    cases["spatial", 1, "grid"] = (1, 1, 1, 1)
    corrupted = pd.concat(
        table[["path", "label"]].assign(
            corruption=name,
            severity=severity,
            attack=attack,
            prediction=[("Type_1", "Type_2")[k] for k in classes],
        )
        for (name, severity, attack), classes in cases.items()
    )
    result = attacked_corruptions_table("clean", table, corrupted, evaluation_context(table))
    cells = result[["corruption", "attack", "accuracy", "count"]].to_dict("split")["data"]
    assert cells == [
        ["blur", "none", 0.75, 4],
        ["blur", "pgd", 0.25, 4],
        ["spatial", "grid", 0.5, 4],
    ]
    assert (result["low"].iloc[1], result["high"].iloc[1]) == wilson_interval(0.25, 4, 0.95)
