"""Numbers against scikit-learn and scipy, against closed forms, and at the edges where there is not enough to say."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from stages.core.predictions import PredictionsError, check
from stages.evaluation import metrics as m
from tests.helpers.prediction_tables import CLASSES, EPS, GRID, make_table, rows


def setting(table: pd.DataFrame, resamples=300) -> m.EvaluationContext:
    return m.EvaluationContext(EPS, GRID, m.ConfidenceIntervals(m.answers(table)["group"], 0.95, resamples, 0))


def finite(value) -> bool:
    return all(map(finite, value.values())) if isinstance(value, dict) else np.isfinite(value)


def attacked(labels, clean_logits, adversarial_logits, **options) -> pd.DataFrame:
    """A small table: one attack at EPS."""
    parts = [rows(labels, clean_logits, **options), rows(labels, adversarial_logits, attack="pgd", eps=EPS, **options)]
    return check(pd.concat(parts, ignore_index=True))


def one_hot(answers, sure=4.0, k=3):
    return np.eye(k)[np.asarray(answers)] * sure


def test_figures_equal_scikit_learn():
    table = make_table("clean", 200, seed=3)
    result, clean = m.model_metrics(table, setting(table)), m.answers(table)
    y, answer = clean["label"], clean["prediction"]
    p = clean[[f"p_{c}" for c in CLASSES]].to_numpy()
    assert result["clean_accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answer))
    assert result["macro_f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert result["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=CLASSES))
    assert result["auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", labels=CLASSES))
    assert [result[f"recall_{c}"] for c in CLASSES] == pytest.approx(list(sk.recall_score(y, answer, average=None)))
    cells = m.confusion_table("clean", table, setting(table)).query("attack == 'none'")["count"].to_numpy().reshape(3, 3)
    assert (cells == sk.confusion_matrix(y, answer)).all()


def test_calibration_of_a_known_forecast():
    # Confidence 0.64 for all, three of four right: the gap is 0.11.
    sure = np.log(0.64 / 0.18)
    clean = rows([0, 0, 0, 0], one_hot([0, 0, 0, 1], sure))
    assert m.expected_calibration_error(clean) == pytest.approx(0.11)
    assert m.reliability(clean).to_dict("records") == [
        {"bin": pytest.approx(0.65), "confidence": pytest.approx(0.64), "accuracy": 0.75, "count": 4}
    ]


@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=50, deadline=None)
def test_wilson_equals_scipy(n, share, confidence):
    hits = round(share * n)
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert m.wilson_interval(hits / n, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_single_photographs_get_wilson_and_groups_wider_intervals():
    hits = np.repeat([True, False, True, True, False, True, False, True, True, False], 12)
    alone = m.ConfidenceIntervals(np.arange(120), 0.95, 2000, 0)
    grouped = m.ConfidenceIntervals(np.repeat(np.arange(10), 12), 0.95, 2000, 0)
    assert alone.share(hits) == m.wilson_interval(0.6, 120, 0.95)
    low, high = grouped.share(hits)
    # Twelve equal pictures of each of ten patients: as uncertain as ten pictures (binomial quantiles of 10 draws).
    assert (low, high) == pytest.approx(tuple(stats.binom.ppf([0.025, 0.975], 10, 0.6) / 10), abs=0.01)


def test_bootstrap_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(5).normal(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert m.ConfidenceIntervals(range(80), 0.95, 5000, 1).mean(values) == pytest.approx(tuple(expected), abs=0.02)


def test_bootstrap_of_balanced_accuracy_covers_it_and_is_seeded():
    table = make_table("clean", 200)
    low, high = (m.model_metrics(table, setting(table))[f"balanced_accuracy_{end}"] for end in ("low", "high"))
    assert low < m.model_metrics(table, setting(table))["balanced_accuracy"] < high
    assert m.model_metrics(table, setting(table)) == m.model_metrics(table, setting(table))


def test_mcnemar_reference():
    # 10 disagreements, 8 of them in favour of the second: two-sided exact p = 2 * P(X <= 2), X ~ Bin(10, 1/2).
    first = np.array([True] * 2 + [False] * 8 + [True] * 30)
    second = np.array([False] * 2 + [True] * 8 + [True] * 30)
    assert m.mcnemar(first, second) == pytest.approx(2 * stats.binom.cdf(2, 10, 0.5))
    assert m.mcnemar(first, first) == 1.0


def test_worst_case_is_per_image_over_attacks_and_smaller_budgets():
    good, bad = one_hot([0, 0, 0, 0]), one_hot([1, 1, 1, 1])

    def mix(wrong):
        return np.where(np.isin(np.arange(4), wrong)[:, None], bad, good)

    labels = [0, 0, 0, 0]
    table = pd.concat(
        [
            rows(labels, mix([0])),  # image 0 is wrong as it is
            rows(labels, mix([]), attack="uniform_noise", eps=EPS),  # noise happens to repair it: still not robust
            rows(labels, mix([1]), attack="fgsm", eps=EPS),
            rows(labels, mix([]), attack="pgd", eps=EPS),
            rows(labels, mix([2]), attack="pgd", eps=EPS / 2),  # found at the smaller budget, missed at the larger
        ],
        ignore_index=True,
    )
    result = m.model_metrics(table, m.EvaluationContext(EPS, [EPS / 2, EPS], setting(table).intervals))
    assert result["robust_accuracy"] == {"uniform_noise": 1.0, "fgsm": 0.75, "pgd": 1.0}
    assert result["robust_accuracy_worst"] == 0.25
    assert result["clean_correct"] == 3
    assert result["attack_success_rate"] == {"uniform_noise": 0.0, "fgsm": pytest.approx(1 / 3), "pgd": 0.0}
    assert result["attack_success_rate_worst"] == pytest.approx(2 / 3)
    assert result["expected_robustness"] == pytest.approx((0.5 + 0.25) / 2)


def test_curve_never_rises_and_starts_at_the_clean_accuracy():
    table = make_table("adv")
    curve = m.robustness_table("adv", table, setting(table))
    worst = curve[curve["attack"] == m.WORST]
    assert list(worst["eps"]) == [0.0, *GRID]
    assert (worst["accuracy"].diff().dropna() <= 0).all()
    assert worst["accuracy"].iloc[0] == curve.loc[curve["attack"] == "none", "accuracy"].item()
    assert ((curve["low"] <= curve["accuracy"]) & (curve["accuracy"] <= curve["high"])).all()


def test_difference_is_paired():
    clean, adv = make_table("clean"), make_table("adv")
    result = m.difference(clean, adv, setting(clean))
    one, other = m.model_metrics(clean, setting(clean)), m.model_metrics(adv, setting(adv))
    for name in ("clean_accuracy", "robust_accuracy_worst"):
        assert result[name] == pytest.approx(other[name] - one[name])
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
    assert result["robust_accuracy_worst_mcnemar_p"] < 0.001
    with pytest.raises(PredictionsError, match="same images"):
        m.difference(clean, make_table("adv", 119), setting(clean))
    same = m.difference(clean, clean, setting(clean))
    assert same == {k: (1.0 if k.endswith("_p") else 0.0) for k in same}
    assert not any(k.endswith("_low") for k in same)  # nothing differs: no interval rather than one of width zero


def test_baselines_of_a_known_mix():
    clean = rows([0, 0, 1, 2], one_hot([0, 0, 0, 0]))
    assert m.baselines(clean) == {"majority_rate": 0.5, "prior_log_loss": pytest.approx(1.5 * np.log(2))}


@pytest.mark.parametrize(
    ("labels", "clean", "adversarial"),
    [
        ([0], [0], [1]),  # one image
        ([0], [1], [1]),  # one image, wrong
        ([0, 1, 2] * 5, [0, 1, 2] * 5, [0, 1, 2] * 5),  # perfect, also under attack
        ([0, 1, 2] * 5, [0] * 15, [0] * 15),  # a constant answer
        ([0, 0, 1, 1], [0, 2, 1, 2], [2, 2, 2, 2]),  # a class that isn't in the test set is predicted
        ([1, 1, 1], [0, 1, 2], [0, 0, 0]),  # a single class
    ],
)
@pytest.mark.parametrize("patients", [None, 1, 2])
def test_edges_give_fewer_figures_but_never_nan(labels, clean, adversarial, patients):
    groups = None if patients is None else [str(i % patients) for i in range(len(labels))]
    table = attacked(labels, one_hot(clean), one_hot(adversarial), groups=groups)
    how = m.EvaluationContext(EPS, [EPS / 2, EPS], m.ConfidenceIntervals(m.answers(table)["group"], 0.95, 100, 0))
    result = m.model_metrics(table, how) | {"difference": m.difference(table, table, how)}
    assert finite(result)
    assert "expected_robustness" not in result  # EPS / 2 wasn't tried
    assert ("attack_success_rate_worst" in result) == (result["clean_correct"] > 0)
    for make in (m.robustness_table, m.confusion_table, m.per_class_table, m.reliability_table):
        assert not make("clean", table, how).isna().any(axis=None)
    low, high = result["clean_accuracy_low"], result["clean_accuracy_high"]
    assert 0 <= low <= result["clean_accuracy"] <= high <= 1
    assert low < high


def test_perfect_model_reads_as_one():
    """The notebook that this project replaces divided by the wrong number and printed 0.80."""
    table = attacked([0, 1, 2] * 5, one_hot([0, 1, 2] * 5), one_hot([0, 1, 2] * 5))
    result = m.model_metrics(table, setting(table))
    for name in ("clean_accuracy", "balanced_accuracy", "macro_f1", "auc", "robust_accuracy_worst"):
        assert result[name] == 1.0
    assert result["attack_success_rate_worst"] == 0.0


def test_median_smallest_budget_is_of_the_right_ones_and_one_that_was_found():
    table = pd.DataFrame({"path": list("abcd"), "label": "x", "eps": [0.0, 0.01, 0.02, 0.25], "found": [1, 1, 1, 0]})
    assert m.smallest_budgets(table) == {"min_eps_images": 3, "median_min_eps": 0.02}
    assert m.smallest_budgets(table.assign(found=[1, 1, 0, 0])) == {"min_eps_images": 3}  # more than half withstood all
    assert m.smallest_budgets(table.iloc[:1]) == {"min_eps_images": 0}


def test_share_changed_within_a_budget_is_of_the_right_ones_and_ends_at_the_largest_tried():
    table = rows([0] * 5, one_hot([0, 0, 0, 0, 1]))
    smallest = pd.DataFrame({"path": table["path"], "eps": [0.02, 0.01, 0.02, 0.25, 0.0], "found": [1, 1, 1, 0, 1]})
    curve = m.minimum_eps_table("clean", table, smallest, setting(table))
    assert list(zip(curve["eps"], curve["changed"], strict=True)) == [(0, 0), (0.01, 0.25), (0.02, 0.75), (0.25, 0.75)]
    assert set(curve["count"]) == {4}
    assert (curve["low"].iloc[2], curve["high"].iloc[2]) == m.wilson_interval(0.75, 4, 0.95)
    none = m.minimum_eps_table("clean", table, smallest.iloc[4:], setting(table))
    assert none.empty
    assert list(none) == list(curve)


def test_defects_stand_beside_the_same_images_without():
    table = rows([0, 0, 1, 1, 2], one_hot([0, 1, 1, 1, 2]))
    some = table.iloc[:4][["path", "label"]].assign(corruption="blur", severity=1, prediction=[*"0122"], confidence=0.9)
    some["prediction"] = [CLASSES[int(k)] for k in some["prediction"]]
    made = m.corruptions_table("clean", table, some, setting(table))
    cells = made[["corruption", "severity", "accuracy", "count"]]
    assert cells.to_dict("split")["data"] == [["none", 0, 0.75, 4], ["blur", 1, 0.25, 4]]
    assert (made["low"].iloc[1], made["high"].iloc[1]) == m.wilson_interval(0.25, 4, 0.95)


def test_an_attack_on_some_images_is_measured_on_those():
    table = make_table("clean", 60)
    some = m.answers(table, "aa-k3", EPS)
    result = m.model_metrics(table, setting(table))
    assert result["attacked_images"]["aa-k3"] == len(some) == 20
    assert result["attacked_images"]["pgd"] == 60
    assert result["robust_accuracy"]["aa-k3"] == pytest.approx(m.right(some).mean())
    curve = m.robustness_table("clean", table, setting(table)).set_index("attack")
    assert curve.loc["aa-k3", "count"] == 20
    assert curve.loc["aa-k3", "low"] <= curve.loc["aa-k3", "accuracy"] <= curve.loc["aa-k3", "high"]


def test_missing_budget_is_named():
    table = make_table("clean", 20)
    with pytest.raises(PredictionsError, match=r"attack\.eps: expected predictions under attack at 0\.1, got budgets 0\.00098"):
        m.model_metrics(table, m.EvaluationContext(0.1, GRID, setting(table).intervals))
