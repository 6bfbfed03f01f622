"""Intervals and tests against scipy, and wider where images belong together."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stages.report import intervals
from stages.report.intervals import ConfidenceIntervals, mcnemar, wilson_interval


@given(
    n=st.integers(1, 2000), fraction=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99])
)
@settings(max_examples=50, deadline=None)
def test_wilson_interval_equals_scipy(n, fraction, confidence):
    hits = round(fraction * n)
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(hits / n, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert hits or found[0] == 0
    assert hits < n or found[1] == 1


def test_single_images_get_wilson_intervals_and_groups_wider_ones():
    hits = np.repeat([True, False, True, True, False, True, False, True, True, False], 12)
    single = ConfidenceIntervals(np.arange(120), 0.95, 2000, 0)
    grouped = ConfidenceIntervals(np.repeat(np.arange(10), 12), 0.95, 2000, 0)
    assert single.proportion(hits) == wilson_interval(0.6, 120, 0.95)
    # Twelve equal images of each of ten patients are as uncertain as ten images.
    expected = stats.binom.ppf([0.025, 0.975], 10, 0.6) / 10
    assert grouped.proportion(hits) == pytest.approx(tuple(expected), abs=0.01)


def test_intervals_over_patients_cover_the_truth_and_those_over_images_do_not():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(40), 8)
    covered = {"patients": 0, "images": 0}
    for seed in range(200):
        skill = rng.beta(2, 2, 40)  # of each patient's images, this fraction is correct
        hits = rng.random(len(groups)) < skill[groups]
        for name, labels in (("patients", groups), ("images", np.arange(len(groups)))):
            low, high = ConfidenceIntervals(labels, 0.95, 200, seed).proportion(hits)
            covered[name] += low <= 0.5 <= high
    assert 0.90 <= covered["patients"] / 200 <= 0.99
    assert covered["images"] / 200 < 0.9


def test_bootstrap_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(5).normal(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0)
    found = ConfidenceIntervals(range(80), 0.95, 5000, 1).mean(values)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_balanced_interval_is_that_of_the_mean_over_classes():
    rng, labels = np.random.default_rng(0), np.repeat(["a", "b"], [80, 20])
    hits = rng.random(100) < np.where(labels == "a", 0.9, 0.4)
    expected = stats.bootstrap(
        (hits[:80], hits[80:]),
        lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
        method="percentile",
        n_resamples=5000,
        rng=0,
    ).confidence_interval
    found = ConfidenceIntervals(range(100), 0.95, 5000, 0).balanced(hits, labels)
    assert found == pytest.approx(tuple(expected), abs=0.03)


def test_intervals_where_resampling_cannot_vary():
    one_group = ConfidenceIntervals(["patient"] * 6, 0.95, 100, 0)
    hits = np.array([True, True, True, False, False, True])
    assert one_group.proportion(hits) == wilson_interval(hits.mean(), 1, 0.95)
    assert one_group.mean(hits.astype(float)) is None
    assert ConfidenceIntervals(range(6), 0.95, 100, 0).mean(np.zeros(6)) is None


def test_mcnemar_equals_the_exact_binomial_test():
    # 10 disagreements, 8 in favor of the second: p = 2 P(X <= 2), X ~ Bin(10, 1/2).
    first = np.array([True] * 2 + [False] * 8 + [True] * 30)
    second = np.array([False] * 2 + [True] * 8 + [True] * 30)
    assert mcnemar(first, second) == pytest.approx(2 * stats.binom.cdf(2, 10, 0.5))
    assert mcnemar(first, first) == 1.0


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_permutation_test_of_few_images_counts_all_combinations_of_signs(change):
    change = np.array(change)
    signs = np.array(list(itertools.product([-1, 1], repeat=len(change))))  # (2^n, n)
    expected = (np.abs(signs @ change) >= abs(change.sum())).mean()
    found = ConfidenceIntervals(range(len(change)), 0.95, 2000, 0).sign_flip_p(change)
    assert found == pytest.approx(expected)


def test_permutation_test_knows_that_images_of_a_patient_belong_together():
    change = np.repeat([1.0, 1.0, 1.0, -1.0], 10)

    def p_value(groups):
        return ConfidenceIntervals(groups, 0.95, 2000, 0).sign_flip_p(change)

    assert p_value(range(40)) < 0.01
    assert p_value(np.repeat(range(4), 10)) == 10 / 16, "of 16 combinations 10 are as large"
    assert p_value([0] * 40) == 1


def test_resampling_by_group_in_blocks_weighs_every_image_of_a_drawn_group(monkeypatch):
    monkeypatch.setattr(intervals, "BLOCK", 7)  # resamples, of 50
    groups, values = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 9]), np.linspace(0, 1, 30) ** 2
    drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=50)[:, groups]
    expected = np.quantile((drawn @ values) / drawn.sum(axis=1), [0.025, 0.975])
    assert ConfidenceIntervals(groups, 0.95, 50, 5).mean(values) == pytest.approx(tuple(expected))
