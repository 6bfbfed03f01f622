"""Metrics against scikit-learn, against closed forms, and at the edges where some can't be computed."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from stages.evaluation import tables
from stages.evaluation.intervals import ConfidenceIntervals, wilson_interval
from stages.evaluation.metrics import (
    EvaluationContext,
    baselines,
    corruption_metrics,
    distortion_metrics,
    expected_calibration_error,
    gradient_metrics,
    min_eps_metrics,
    model_metrics,
    paired_difference,
    reliability,
    second_norm_metrics,
)
from stages.evaluation.selection import select_predictions

from stages.core.errors import InputError
from stages.core.predictions import validate_predictions
from tests.helpers.prediction_tables import (
    CLASSES,
    EPS,
    GRID,
    make_corruptions,
    make_gradients,
    make_table,
    rows,
)
from tests.helpers.reports import evaluation_context


def is_finite(value) -> bool:
    return all(map(is_finite, value.values())) if isinstance(value, dict) else np.isfinite(value)


def attacked_table(labels, clean_logits, adversarial_logits, **options) -> pd.DataFrame:
    """A small table: one attack at EPS."""
    parts = [
        rows(labels, clean_logits, **options),
        rows(labels, adversarial_logits, attack="pgd", eps=EPS, **options),
    ]
    return validate_predictions(pd.concat(parts, ignore_index=True))


def one_hot(predictions, logit=4.0, k=3):
    return np.eye(k)[np.asarray(predictions)] * logit


def test_metrics_equal_scikit_learn():
    table = make_table("clean", 200, seed=3)
    result, clean = model_metrics(table, evaluation_context(table)), select_predictions(table)
    y, prediction = clean["label"], clean["prediction"]
    p = clean[[f"p_{c}" for c in CLASSES]].to_numpy()
    assert result["clean_accuracy"] == pytest.approx(sk.accuracy_score(y, prediction))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, prediction))
    assert result["macro_f1"] == pytest.approx(sk.f1_score(y, prediction, average="macro"))
    assert result["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=CLASSES))
    assert result["auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", labels=CLASSES))
    assert [result[f"recall_{c}"] for c in CLASSES] == pytest.approx(
        list(sk.recall_score(y, prediction, average=None))
    )


def test_calibration_error_of_a_known_forecast():
    # Confidence 0.64 for all, three of four correct: the gap is 0.11.
    logit = np.log(0.64 / 0.18)
    clean = rows([0, 0, 0, 0], one_hot([0, 0, 0, 1], logit))
    assert expected_calibration_error(clean) == pytest.approx(0.11)
    assert reliability(clean).to_dict("records") == [
        {
            "bin": pytest.approx(0.65),
            "confidence": pytest.approx(0.64),
            "accuracy": 0.75,
            "count": 4,
        }
    ]


def test_balanced_accuracy_lies_in_its_interval_and_is_reproducible():
    table = make_table("clean", 200)
    first, second = (model_metrics(table, evaluation_context(table)) for _ in range(2))
    assert (
        first["balanced_accuracy_low"]
        < first["balanced_accuracy"]
        < first["balanced_accuracy_high"]
    )
    assert first == second


def test_robust_accuracy_is_the_worst_case_per_image():
    correct, wrong = one_hot([0, 0, 0, 0]), one_hot([1, 1, 1, 1])

    def misclassified(*images):
        return np.where(np.isin(np.arange(4), images)[:, None], wrong, correct)

    labels = [0, 0, 0, 0]
    table = pd.concat(
        [
            rows(labels, misclassified(0)),
            rows(
                labels, misclassified(), attack="uniform_noise", eps=EPS
            ),  # noise corrects image 0: still not robust
            rows(labels, misclassified(1), attack="fgsm", eps=EPS),
            rows(labels, misclassified(), attack="pgd", eps=EPS),
            rows(
                labels, misclassified(2), attack="pgd", eps=EPS / 2
            ),  # found at the smaller eps, missed at the larger
        ],
        ignore_index=True,
    )
    result = model_metrics(
        table, EvaluationContext(EPS, [EPS / 2, EPS], evaluation_context(table).intervals)
    )
    assert result["robust_accuracy"] == {"uniform_noise": 1.0, "fgsm": 0.75, "pgd": 1.0}
    assert result["robust_accuracy_worst"] == 0.25
    assert result["clean_correct"] == 3
    rates = result["attack_success_rate"]
    assert [rates[attack] for attack in ("uniform_noise", "fgsm", "pgd")] == [
        0.0,
        pytest.approx(1 / 3),
        0.0,
    ]
    assert (rates["fgsm_low"], rates["fgsm_high"]) == pytest.approx(wilson_interval(1 / 3, 3, 0.95))
    assert result["attack_success_rate_worst"] == pytest.approx(2 / 3)
    assert result["expected_robustness"] == pytest.approx((0.5 + 0.25) / 2)


def test_psnr_and_ssim_are_those_of_the_perturbed_and_misclassified_images():
    table = attacked_table([0, 0, 0, 0], one_hot([0, 0, 0, 1]), one_hot([1, 2, 0, 1]))
    pixels = 3 * 56 * 56
    attacked = table["attack"] == "pgd"
    table.loc[attacked, "l2"] = [
        EPS * pixels**0.5,
        0.1 * pixels**0.5,
        9.0,
        0.0,
    ]  # all pixels by eps, by 0.1
    table.loc[attacked, "ssim"] = [0.9, 0.7, 0.1, 1.0]
    psnr = np.mean([-20 * np.log10(EPS), 20.0])
    expected = {"mean_psnr": {"pgd": pytest.approx(psnr)}, "mean_ssim": {"pgd": pytest.approx(0.8)}}
    assert distortion_metrics(table, EPS, pixels) == expected
    unharmed = attacked_table([0, 0], one_hot([0, 0]), one_hot([0, 0]))
    assert distortion_metrics(unharmed, EPS, pixels) == {"mean_psnr": {}, "mean_ssim": {}}


def test_gradient_share_is_the_mean_within_its_interval():
    table = make_table("clean")
    found = gradient_metrics(make_gradients(table), evaluation_context(table))
    assert found["central_gradient_share"] == pytest.approx(0.3)
    assert (
        0.2 < found["central_gradient_share_low"] < 0.3 < found["central_gradient_share_high"] < 0.4
    )


def test_second_norm_counts_alone_and_together_with_the_first():
    """Four images: correct under both, under the first budget only, under the second only, under none."""
    first = attacked_table([0, 0, 0, 0], one_hot([0, 0, 0, 0]), one_hot([0, 0, 1, 1]))
    second = attacked_table([0, 0, 0, 0], one_hot([0, 0, 0, 0]), one_hot([0, 1, 0, 1]))
    second.loc[second["attack"] != "none", "eps"] = 2.0
    context = EvaluationContext(EPS, (EPS,), evaluation_context(first).intervals)
    found = second_norm_metrics(first, second, context)
    assert (
        found["second_eps"],
        found["robust_accuracy_second_norm"],
        found["robust_accuracy_both_norms"],
    ) == (2.0, 0.5, 0.25)
    assert (
        found["robust_accuracy_both_norms_low"] <= 0.25 <= found["robust_accuracy_both_norms_high"]
    )
    assert second_norm_metrics(first, None, context) == {}


def test_difference_is_paired():
    clean, adv = make_table("clean"), make_table("adv")
    context = evaluation_context(clean)
    result = paired_difference(clean, adv, context)
    before, after = model_metrics(clean, context), model_metrics(adv, context)
    for name in ("clean_accuracy", "robust_accuracy_worst"):
        assert result[name] == pytest.approx(after[name] - before[name])
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
    assert result["robust_accuracy_worst_permutation_p"] == 2 / 301, (
        "none of 300 resamples changes as much"
    )
    assert result["robust_accuracy_worst_mcnemar_p"] < 0.001


def test_difference_of_tables_about_other_images_is_refused():
    clean = make_table("clean")
    with pytest.raises(InputError, match="same images"):
        paired_difference(clean, make_table("adv", 119), evaluation_context(clean))


def test_difference_of_equal_tables_is_zero_without_interval():
    clean = make_table("clean")
    result = paired_difference(clean, clean, evaluation_context(clean))
    assert result == {k: (1.0 if k.endswith("_p") else 0.0) for k in result}
    assert not any(k.endswith("_low") for k in result)  # rather than an interval of width zero


def test_baselines_of_known_class_frequencies():
    clean = rows([0, 0, 1, 2], one_hot([0, 0, 0, 0]))
    assert baselines(clean) == {
        "majority_rate": 0.5,
        "prior_log_loss": pytest.approx(1.5 * np.log(2)),
    }


@pytest.mark.parametrize(
    ("labels", "clean", "adversarial"),
    [
        ([0], [0], [1]),  # one image
        ([0], [1], [1]),  # one image, misclassified
        ([0, 1, 2] * 5, [0, 1, 2] * 5, [0, 1, 2] * 5),  # perfect, also under attack
        ([0, 1, 2] * 5, [0] * 15, [0] * 15),  # a constant prediction
        (
            [0, 0, 1, 1],
            [0, 2, 1, 2],
            [2, 2, 2, 2],
        ),  # a class that isn't in the test set is predicted
        ([1, 1, 1], [0, 1, 2], [0, 0, 0]),  # a single class
    ],
)
@pytest.mark.parametrize("patients", [None, 1, 2])
def test_edge_cases_give_fewer_metrics_but_never_nan(labels, clean, adversarial, patients):
    groups = None if patients is None else [str(i % patients) for i in range(len(labels))]
    table = attacked_table(labels, one_hot(clean), one_hot(adversarial), groups=groups)
    intervals = ConfidenceIntervals(select_predictions(table)["group"], 0.95, 100, 0)
    context = EvaluationContext(EPS, [EPS / 2, EPS], intervals)
    result = model_metrics(table, context) | {
        "difference": paired_difference(table, table, context)
    }
    assert is_finite(result)
    assert "expected_robustness" not in result  # no attack was run at EPS / 2
    assert ("attack_success_rate_worst" in result) == (result["clean_correct"] > 0)
    for make in (
        tables.robustness_table,
        tables.confusion_table,
        tables.per_class_table,
        tables.reliability_table,
    ):
        assert not make("clean", table, context).isna().any(axis=None)
    low, high = result["clean_accuracy_low"], result["clean_accuracy_high"]
    assert 0 <= low <= result["clean_accuracy"] <= high <= 1
    assert low < high


def test_perfect_model_scores_one():
    """The notebook that this project replaces divided by the wrong number and printed 0.80."""
    table = attacked_table([0, 1, 2] * 5, one_hot([0, 1, 2] * 5), one_hot([0, 1, 2] * 5))
    result = model_metrics(table, evaluation_context(table))
    for name in ("clean_accuracy", "balanced_accuracy", "macro_f1", "auc", "robust_accuracy_worst"):
        assert result[name] == 1.0
    assert result["attack_success_rate_worst"] == 0.0


def test_median_minimum_eps_is_of_correct_images_and_was_found():
    images = attacked_table([0, 1, 2, 0], one_hot([0, 1, 2, 1]), one_hot([0, 1, 2, 1]))
    eps = pd.DataFrame(
        {
            "path": images["path"][:4],
            "label": "x",
            "eps": [0.01, 0.02, 0.25, 0.0],
            "found": [1, 1, 0, 1],
        }
    )

    def metrics(table):
        return min_eps_metrics(
            tables.minimum_eps_table("clean", images, table, evaluation_context(images))
        )

    found = metrics(eps)
    assert (found["min_eps_images"], found["median_min_eps"]) == (3, 0.02)
    assert metrics(eps.assign(found=[1, 0, 0, 1])) == {
        "min_eps_images": 3
    }  # not found for more than half
    assert metrics(eps.iloc[3:]) == {"min_eps_images": 0}


def test_interval_of_the_median_is_where_the_band_crosses_one_half():
    curve = pd.DataFrame(
        {"eps": [0, 1, 2, 3, 4], "changed": [0, 0.3, 0.5, 0.7, 0.9], "low": [0, 0.1, 0.3, 0.5, 0.8]}
    )
    curve = curve.assign(high=[0, 0.5, 0.7, 0.9, 1.0], count=40)
    expected = {
        "min_eps_images": 40,
        "median_min_eps": 2,
        "median_min_eps_low": 1,
        "median_min_eps_high": 3,
    }
    assert min_eps_metrics(curve) == expected
    assert min_eps_metrics(curve.iloc[:3]) == {
        "min_eps_images": 40,
        "median_min_eps": 2,
    }  # its end lies beyond what was tried


def test_corrupted_accuracy_is_the_mean_over_severities():
    corruptions = make_corruptions(make_table("clean", 12))
    wrong = corruptions["label"].map({"Type_1": "Type_2", "Type_2": "Type_3", "Type_3": "Type_1"})
    predictions = corruptions["label"].where(corruptions["severity"] < 3, wrong)
    result = corruption_metrics(corruptions.assign(prediction=predictions))
    assert result == {
        "corrupted_accuracy": dict.fromkeys(("blur", "glare"), pytest.approx(2 / 3)),
        "corrupted_images": 12,
    }


def test_missing_eps_is_named():
    table = make_table("clean", 20)
    with pytest.raises(
        InputError,
        match=r"attack\.eps: expected predictions under attack at 0\.1, got eps 0\.00098",
    ):
        model_metrics(table, EvaluationContext(0.1, GRID, evaluation_context(table).intervals))
