"""Rows selected by attack and eps, and the worst case per image."""

import numpy as np
import pandas as pd
import pytest
from stages.evaluation.selection import (
    attacks_at,
    correct_under,
    eps_values,
    is_correct,
    select_predictions,
    worst_case_predictions,
)

from tests.helpers.prediction_tables import EPS, GRID, STRENGTH, make_table, rows


def test_eps_and_attacks_of_a_table():
    table = make_table("clean", 30)
    assert eps_values(table) == pytest.approx(list(GRID))
    assert attacks_at(table, EPS) == [*STRENGTH, "apgd"]
    assert attacks_at(table, EPS / 2) == ["pgd"]
    assert attacks_at(table, 0.1) == []


def test_selection_is_sorted_by_path_and_accepts_eps_of_six_digits():
    table = make_table("clean", 30)
    shuffled = table.assign(eps=table["eps"].map(lambda eps: float(f"{eps:.6g}"))).sample(
        frac=1, random_state=0
    )
    for attack, eps in (("none", 0.0), ("fgsm", EPS), ("pgd", EPS / 2)):
        selected = select_predictions(shuffled, attack, eps)
        assert selected["path"].is_monotonic_increasing
        assert len(selected) == 30
        assert (selected["attack"] == attack).all()
        assert (selected["margin"] == select_predictions(table, attack, eps)["margin"]).all()


def test_correct_images_of_an_attack_are_sorted_by_path():
    table = make_table("clean", 30)
    expected = is_correct(select_predictions(table, "fgsm", EPS))
    assert (correct_under(table.sample(frac=1, random_state=0), "fgsm", EPS) == expected).all()
    assert 0 < expected.sum() < 30


def test_worst_case_is_per_image_over_attacks_and_smaller_eps():
    labels, correct, wrong = [0] * 4, np.eye(3)[[0] * 4] * 4.0, np.eye(3)[[1] * 4] * 4.0

    def misclassified(*images):
        return np.where(np.isin(np.arange(4), images)[:, None], wrong, correct)

    table = pd.concat(
        [
            rows(labels, misclassified(0)),
            rows(labels, misclassified(1), attack="fgsm", eps=EPS),
            rows(labels, misclassified(2), attack="pgd", eps=EPS / 2),
            rows(labels, misclassified(), attack="pgd", eps=EPS),
        ],
        ignore_index=True,
    )
    worst = worst_case_predictions(table, EPS)
    assert is_correct(worst).tolist() == [False, False, False, True]
    assert worst["attack"].iloc[:3].tolist() == ["none", "fgsm", "pgd"]
    assert is_correct(worst_case_predictions(table, EPS / 2)).tolist() == [False, True, False, True]
    assert is_correct(worst_case_predictions(table, 0.0)).tolist() == [False, True, True, True]


def test_worst_case_prefers_a_misclassification_to_a_lower_margin():
    # A tie: the margin is 0 in both rows, the prediction is the label in one of them only.
    tie = rows([0], [[1.0, 1.0, 0.0]])
    table = pd.concat(
        [tie, tie.assign(attack="pgd", eps=EPS, prediction="Type_2", margin=0.5)], ignore_index=True
    )
    assert worst_case_predictions(table, EPS)["prediction"].item() == "Type_2"
    lower = pd.concat([tie, tie.assign(attack="pgd", eps=EPS, margin=-0.5)], ignore_index=True)
    assert worst_case_predictions(lower, EPS)["attack"].item() == "pgd"
