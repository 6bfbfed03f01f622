"""Conformal prediction sets: a hand example, the guarantee on exchangeable data, and what happens with too few images."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from stages.evaluation.conformal import (
    ALPHA,
    MIN_IMAGES,
    conformal_metrics,
    conformal_quantile,
    conformal_table,
    label_scores,
    largest_scores,
    prediction_sets,
)
from stages.evaluation.selection import WORST, select_predictions
from stages.evaluation.summary import conformal_sentences

from tests.helpers.prediction_tables import CLASSES, EPS, make_calibration, make_table, rows
from tests.helpers.reports import evaluation_context, make_report


def random_rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Images of a weak model: labels and logits have something to do with each other."""
    labels = rng.integers(0, 3, n)
    return rows(labels, rng.normal(0, 1, (n, 3)) + np.eye(3)[labels])


def test_quantile_and_sets_of_a_hand_example():
    # Nine scores at alpha 0.2: the ceil(10 * 0.8) = 8th smallest.
    scores = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.3, 0.4, 0.7, 0.6])
    assert conformal_quantile(scores, 0.2) == 0.8
    images = rows([0, 1], np.log([[0.5, 0.3, 0.2], [0.15, 0.1, 0.75]]))
    assert label_scores(images) == pytest.approx([0.5, 0.9])
    assert prediction_sets(images, 0.8 + 1e-9).tolist() == [
        [True, True, True],
        [False, False, True],
    ]
    assert prediction_sets(images, 0.2).sum() == 0, "no class is likely enough"


@pytest.mark.parametrize(
    ("n", "alpha"), [(19, 0.15), (9, 0.1), (19, 0.05), (99, 0.01), (999, 0.001)]
)
def test_rank_is_exact_in_spite_of_rounding(n, alpha):
    assert conformal_quantile(np.arange(1.0, n + 1), alpha) == round((n + 1) * (1 - alpha))


@pytest.mark.parametrize("n", [0, 1, MIN_IMAGES - 1, MIN_IMAGES])
def test_too_few_images_give_the_set_of_all_classes(n):
    threshold = conformal_quantile(np.linspace(0.1, 0.2, n), ALPHA)
    assert math.isinf(threshold) == (n < MIN_IMAGES)
    if n < MIN_IMAGES:
        assert prediction_sets(random_rows(np.random.default_rng(0), 5), threshold).all()


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (50, 0.1), (50, 0.3), (200, 0.05)])
def test_coverage_on_exchangeable_data_is_what_theory_says(n, alpha):
    """Without ties the expected coverage is ceil((n + 1)(1 - alpha)) / (n + 1)."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        images = random_rows(rng, n + 1)
        threshold = conformal_quantile(label_scores(images.iloc[:n]), alpha)
        covered.append(label_scores(images.iloc[n:]).item() <= threshold)
    expected = math.ceil(round((n + 1) * (1 - alpha), 9)) / (n + 1)
    assert 1 - alpha <= expected <= 1 - alpha + 1 / (n + 1)
    assert abs(np.mean(covered) - expected) < 3 * math.sqrt(alpha * (1 - alpha) / len(covered))


def test_larger_alpha_gives_subsets():
    rng = np.random.default_rng(0)
    scores, images = label_scores(random_rows(rng, 60)), random_rows(rng, 40)
    sets = [
        prediction_sets(images, conformal_quantile(scores, alpha))
        for alpha in (0.01, 0.05, 0.1, 0.3, 0.7)
    ]
    for larger, smaller in itertools.pairwise(sets):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert sets[0].all(), "60 images are too few for 99%"


def test_worst_case_covers_an_image_only_if_every_attack_does():
    table = make_table("adv", 60)
    within = table[table["eps"] <= EPS]
    worst = largest_scores(table, EPS)
    largest = within.assign(score=label_scores(within)).groupby("path")["score"].max()
    assert list(worst["path"]) == list(largest.index) == list(select_predictions(table)["path"])
    assert (label_scores(worst) == largest.to_numpy()).all()
    cells = conformal_table("adv", table, make_calibration(table), evaluation_context(table))
    coverage = cells.pivot_table(index="attack", columns="calibration", values="coverage")
    assert (coverage.loc[WORST] == coverage.min()).all()


def test_attack_breaks_the_coverage_of_clean_calibration_and_calibration_under_attack_restores_it():
    table = make_table("clean", 200)
    cells = conformal_table("clean", table, make_calibration(table), evaluation_context(table))
    coverage = cells.set_index(["calibration", "attack"])["coverage"]
    assert coverage["none", "none"] >= 1 - ALPHA, "calibrated on the same predictions"
    assert coverage["none", "pgd"] < 0.5
    assert coverage["pgd", "pgd"] >= 1 - ALPHA
    sizes = cells.set_index(["calibration", "attack"])["set_size"]
    assert sizes["none", "none"] < sizes["pgd", "none"] <= len(CLASSES)
    assert ((cells["low"] <= cells["coverage"]) & (cells["coverage"] <= cells["high"])).all()
    assert set(cells["count"]) == {200}


def test_metrics_are_those_of_the_table():
    table = make_table("adv", 60)
    calibration = make_calibration(table)
    cells = conformal_table("adv", table, calibration, evaluation_context(table))
    metrics = conformal_metrics(cells, calibration)
    assert metrics["conformal_images"] == metrics["conformal_groups"] == 60
    by_case = cells.set_index(["calibration", "attack"])
    for prefix, calibrated_on in (("conformal", "none"), ("conformal_pgd", "pgd")):
        for case, attack in (("clean", "none"), ("worst", WORST)):
            row = by_case.loc[(calibrated_on, attack)]
            ends = (metrics[f"{prefix}_coverage_{case}{end}"] for end in ("", "_low", "_high"))
            assert tuple(ends) == (row["coverage"], row["low"], row["high"])
            assert metrics[f"{prefix}_set_size_{case}"] == row["set_size"]


def test_too_few_validation_images_are_said_to_be_inconclusive():
    table = make_table("clean", 60)
    calibration = make_calibration(table)
    few = calibration[calibration["path"].isin(calibration["path"].unique()[: MIN_IMAGES - 1])]
    cells = conformal_table("clean", table, few, evaluation_context(table))
    assert cells.empty
    metrics = conformal_metrics(cells, few)
    assert metrics == {"conformal_images": MIN_IMAGES - 1, "conformal_groups": MIN_IMAGES - 1}
    (sentence,) = conformal_sentences({"clean": metrics})
    assert sentence == (
        "Standard training: inconclusive, n = 8 validation images; with fewer than 9 every set holds all classes."
    )


def test_sentence_gives_coverage_with_interval_size_and_number_of_images():
    sentence = conformal_sentences(make_report(("adv",)).metrics)[0]
    assert sentence.startswith(
        "Adversarial fine-tuning: calibrated on n = 120 clean validation images in 120 groups, the sets"
    )
    assert sentence.count("classes on average") == sentence.count("[") == 2
