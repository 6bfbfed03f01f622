"""Conformal prediction: by hand, the guarantee on exchangeable data, and too few images."""

import math

import numpy as np
import pandas as pd
import pytest

from stages.core.conformal import (
    ALPHA,
    MIN_IMAGES,
    conformal_quantile,
    label_scores,
    largest_scores,
    prediction_sets,
)
from stages.core.predictions import WORST, within
from stages.report.sections import conformal
from tests.helpers.prediction_tables import make_calibration, make_table, rows
from tests.helpers.reports import make_project, read_results


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
    assert prediction_sets(images, 0.81).tolist() == [[True, True, True], [False, False, True]]
    assert prediction_sets(images, 0.2).sum() == 0, "no class is likely enough"


@pytest.mark.parametrize(
    ("n", "alpha"), [(149, 0.18), (9, 0.1), (19, 0.05), (99, 0.01), (999, 0.001)]
)
def test_rank_is_exact_in_spite_of_rounding(n, alpha):
    assert conformal_quantile(np.arange(1.0, n + 1), alpha) == round((n + 1) * (1 - alpha))


@pytest.mark.parametrize("n", [0, 1, MIN_IMAGES - 1, MIN_IMAGES])
def test_too_few_images_give_the_set_of_all_classes(n):
    threshold = conformal_quantile(np.linspace(0.1, 0.2, n), ALPHA)
    assert math.isinf(threshold) == (n < MIN_IMAGES)
    everything = prediction_sets(random_rows(np.random.default_rng(0), 20), threshold).all()
    assert everything == (n < MIN_IMAGES)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (50, 0.1), (50, 0.3), (200, 0.05)])
def test_coverage_on_exchangeable_data_is_what_theory_says(n, alpha):
    """Without ties the expected coverage is ceil((n + 1)(1 - alpha)) / (n + 1)."""
    rng, trials = np.random.default_rng(0), 400
    scores = label_scores(random_rows(rng, trials * (n + 1))).reshape(trials, n + 1)
    covered = [mine[n] <= conformal_quantile(mine[:n], alpha) for mine in scores]
    expected = math.ceil(round((n + 1) * (1 - alpha), 9)) / (n + 1)
    assert 1 - alpha <= expected <= 1 - alpha + 1 / (n + 1)
    assert abs(np.mean(covered) - expected) < 3 * math.sqrt(alpha * (1 - alpha) / trials)


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("label", "NA", "1")])
def test_worst_case_covers_an_image_only_if_every_attack_does(classes):
    table = make_table("adv", 60, classes=classes)
    eps = table["eps"].max()
    scores = within(table, eps).assign(score=label_scores).groupby("path")["score"].max()
    worst = largest_scores(table, eps)
    assert list(worst["path"]) == list(scores.index)
    assert (label_scores(worst) == scores.to_numpy()).all()


def test_attack_breaks_the_coverage_of_clean_calibration_and_calibration_under_it_restores_it(
    results,
):
    cells = results.plot("conformal", "clean").set_index(["calibration", "attack"])
    coverage, sizes = cells["coverage"], cells["set_size"]
    assert coverage["none", "none"] >= 1 - ALPHA, "calibrated on the same predictions"
    assert coverage["none", "pgd"] < 0.5
    assert coverage["pgd", "pgd"] >= 1 - ALPHA
    assert sizes["none", "none"] < sizes["pgd", "none"] <= len(results.dataset.classes)
    for calibration in ("none", "pgd"):
        assert coverage[calibration, WORST] == coverage[calibration].min()
    for prefix, calibration in (("conformal", "none"), ("conformal_pgd", "pgd")):
        for case, attack in (("clean", "none"), ("worst", WORST)):
            found = results.metrics["clean"][f"{prefix}_coverage_{case}"]
            assert found == pytest.approx(coverage[calibration, attack], rel=1e-5)


def test_too_few_validation_images_are_said_to_be_inconclusive(project):
    table = make_table(n=30)
    calibration = make_calibration(table)
    few = calibration["path"].isin(calibration["path"].unique()[: MIN_IMAGES - 1])
    make_project(n=30, results={"calibration": calibration[few]})
    results = read_results()
    results.plots |= conformal.SECTION.compute_tables(results)
    for name, model in results.models.items():
        results.metrics[name] = conformal.metrics(results, model)
        n = MIN_IMAGES - 1
        assert results.metrics[name] == {"conformal_images": n, "conformal_groups": n}
    assert results.plots["conformal"].empty
    assert all("inconclusive" in text for text in conformal.sentences(results))
