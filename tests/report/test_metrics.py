"""Metrics against scikit-learn, against closed forms and by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from stages import evaluate
from stages.core.predictions import is_correct, probabilities, select, within
from stages.report.comparison import overall_metrics
from stages.report.intervals import wilson_interval
from stages.report.sections import (
    attacks,
    calibration,
    corruptions,
    distortion,
    minimum_eps,
    second_norm,
    smoothing,
)
from tests.helpers.prediction_tables import (
    CLASSES,
    EPS,
    make_corruptions,
    make_table,
    misclassified,
    one_hot,
    predicted,
    rows,
)
from tests.helpers.reports import make_project, read_results


def read(table, second=None, **options):
    """Results of a project whose models make these predictions; the second one makes the same."""
    make_project(tables={"clean": table, "adv": table if second is None else second}, **options)
    return read_results()


def metrics_of(section, results, model="clean"):
    results = replace(results, plots=section.SECTION.compute_tables(results))
    return section.metrics(results, results.models[model])


def test_metrics_equal_scikit_learn(results):
    for model, found in ((model, results.metrics[model.name]) for model in results.models.values()):
        clean = select(model.rows)
        y, prediction, p = clean["label"], clean["prediction"], probabilities(clean)
        p, worst = p / p.sum(axis=1, keepdims=True), results.worst(model)["prediction"]
        expected = {
            "clean_accuracy": sk.accuracy_score(y, prediction),
            "balanced_accuracy": sk.balanced_accuracy_score(y, prediction),
            "balanced_robust_accuracy_worst": sk.balanced_accuracy_score(y, worst),
            "macro_f1": sk.f1_score(y, prediction, average="macro"),
            "log_loss": sk.log_loss(y, p, labels=CLASSES),
            "auc": sk.roc_auc_score(y, p, multi_class="ovr", labels=CLASSES),
        }
        recalls = sk.recall_score(y, prediction, average=None, labels=CLASSES)
        expected |= {
            f"recall_{name}": recall for name, recall in zip(CLASSES, recalls, strict=True)
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        cells = results.plot("confusion", model.name)
        for attack, predicted_ in (("none", prediction), ("worst", worst)):
            counts = cells.loc[cells["attack"] == attack, "count"].to_numpy().reshape(3, 3)
            assert (counts == sk.confusion_matrix(y, predicted_, labels=CLASSES)).all()


def assert_in_intervals(values):
    """Returns the metrics that have an interval."""
    bounded = {name for name in values if f"{name}_low" in values}
    for name in bounded:
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"], name
    return bounded


def test_every_metric_lies_in_its_interval(results):
    models = [results.metrics[name] for name in results.models]
    for values in (*models, results.metrics["difference"]):
        assert {"clean_accuracy", "robust_accuracy_worst"} <= assert_in_intervals(values)
    for values in models:
        for key in ("robust_accuracy", "attack_success_rate"):
            assert assert_in_intervals(values[key]) == values["attacked_images"].keys()


@pytest.mark.usefixtures("drawn")
@pytest.mark.usefixtures("drawn")
def test_order_of_rows_in_the_tables_does_not_matter(project):
    make_project(n=24, per_group=3, size=16)
    expected = evaluate.main()
    for file in project.glob("data/predictions/*/*.csv"):
        if "attacks" not in file.stem:  # listed from cheap to expensive
            pd.read_csv(file).sample(frac=1, random_state=0).to_csv(file, index=False)
    assert evaluate.main() == expected


def test_calibration_error_of_a_known_forecast():
    # Confidence 0.64 for all, three of four correct: the distance is 0.11.
    clean = rows([0] * 4, one_hot([0, 0, 0, 1]) / 4 * np.log(0.64 / 0.18))
    assert calibration.expected_calibration_error(clean) == pytest.approx(0.11)
    (bin_,) = calibration.reliability(clean).to_dict("records")
    expected = {"bin": 0.65, "confidence": 0.64, "accuracy": 0.75, "count": 4}
    assert bin_ == pytest.approx(expected)


def test_log_loss_of_an_impossible_label_is_finite():
    losses = calibration.log_losses(rows([0, 0], [[0, 800, 0], [800, 0, 0]]))
    assert losses == pytest.approx([-np.log(1e-15), 0])


def test_robust_accuracy_is_the_worst_case_per_image(project):
    """Image 0 is wrong without attack, 1 under FGSM, 2 at the smaller ε only, 3 never."""
    table = predicted(
        [0] * 4,
        [1, 0, 0, 0],
        uniform_noise=[0, 0, 0, 0],
        fgsm=[0, 1, 0, 0],
        pgd=[0, 0, 0, 0],
        smaller=[0, 0, 1, 0],
    )
    results = read(table, params={"attack.eps_grid": [EPS / 2, EPS]})
    found = metrics_of(attacks, results)
    assert {name: found["robust_accuracy"][name] for name in ("uniform_noise", "fgsm", "pgd")} == {
        "uniform_noise": 1.0,
        "fgsm": 0.75,
        "pgd": 1.0,
    }
    assert (found["clean_correct"], found["robust_accuracy_worst"]) == (3, 0.25)
    rates = found["attack_success_rate"]
    assert (rates["uniform_noise"], rates["fgsm"]) == (0, pytest.approx(1 / 3))
    assert (rates["fgsm_low"], rates["fgsm_high"]) == wilson_interval(1 / 3, 3, 0.95)
    assert found["attack_success_rate_worst"] == pytest.approx(2 / 3)
    assert found["expected_robustness"] == pytest.approx((0.5 + 0.25) / 2)


def test_worst_case_is_wrong_if_any_attack_within_eps_is(results):
    for model in results.models.values():
        curve = results.plot("robustness", model.name).query("attack == 'worst'")
        assert (curve["accuracy"].diff().dropna() <= 0).all()
        for point in curve.itertuples():
            correct = within(model.rows, point.eps).assign(correct=is_correct)
            assert point.accuracy == correct.groupby("path")["correct"].all().mean()


def test_expected_robustness_needs_attacks_at_every_eps_of_the_grid(project):
    results = read(predicted([0, 1], [0, 1]))
    assert "expected_robustness" not in metrics_of(attacks, results)


def test_transfer_attack_counts_in_the_worst_case(project):
    table = make_table(n=30, always="correct")
    transfer = misclassified(table[(table["attack"] == "fgsm")], np.ones(30, bool))
    parts = [
        transfer.assign(attack=name, target=model)
        for name in ("transfer", "universal_transfer")
        for model in ("clean", "adv")
    ]
    make_project(tables={"clean": table, "adv": table}, results={"transfer": pd.concat(parts)})
    results = read_results()
    for model in results.models:
        found = metrics_of(attacks, results, model)
        assert (found["robust_accuracy"]["transfer"], found["robust_accuracy"]["pgd"]) == (0, 1)
        assert found["attacked_images"]["transfer"] == 30
        assert found["robust_accuracy_worst"] == 0


def test_psnr_and_ssim_are_those_of_the_perturbed_and_misclassified_images(project):
    table = predicted([0] * 4, [0, 0, 0, 1], pgd=[1, 2, 0, 1])
    side = 3 * 32 * 32
    attacked = table["attack"] == "pgd"
    # All pixel values changed by ε, by 0.1; not misclassified; not perturbed.
    table.loc[attacked, "l2"] = [EPS * side**0.5, 0.1 * side**0.5, 9.0, 0.0]
    table.loc[attacked, "ssim"] = [0.9, 0.7, 0.1, 1.0]
    found = metrics_of(distortion, read(table))
    assert found["mean_psnr"]["pgd"] == pytest.approx(np.mean([-20 * np.log10(EPS), 20]), rel=1e-4)
    assert found["mean_ssim"]["pgd"] == pytest.approx(0.8)
    unharmed = {name for kind in found.values() for name in kind} & {"uniform_noise", "bim"}
    assert unharmed == {"uniform_noise", "bim"}, "image 3 is wrong anyway, and was perturbed"


def test_second_norm_counts_alone_and_together_with_the_first(project):
    """Four images: correct under both budgets, the first only, the second only, none."""
    first = predicted([0] * 4, [0] * 4, pgd=[0, 0, 1, 1])
    second = predicted([0] * 4, [0] * 4, pgd=[0, 1, 0, 1])
    second.loc[second["attack"] != "none", ["eps", "norm"]] = 0.5, "l2"
    options = {"params": {"attack.second_eps": 0.5}, "results": {"second_norm": second}}
    found = metrics_of(second_norm, read(first, **options))
    names = ("second_eps", "robust_accuracy_second_norm", "robust_accuracy_both_norms")
    assert [found[name] for name in names] == [0.5, 0.5, 0.25]


def test_smoothing_counts_what_is_certified_and_what_is_surely_wrong(project):
    """Four images: certified up to 0.2, up to 0.05, undecided, surely wrong; PGD breaks one."""
    labels = predicted([0] * 4, [0] * 4)
    clean = select(labels)[["path", "label"]].assign(votes=0, radius=0.0)
    clean["certified_radius"] = [0.2, 0.05, 0, 0]
    clean["abstains"], clean["prediction"] = [0, 0, 1, 0], clean["label"]
    clean.loc[2:, "prediction"] = CLASSES[1]
    attacked = clean.assign(radius=0.1)
    attacked.loc[1, "prediction"] = CLASSES[1]
    options = {
        "params": {"attack_eval.smoothing_sigma": 0.1},
        "results": {"smoothing": pd.concat([clean, attacked])},
    }
    found = metrics_of(smoothing, read(labels, **options))
    assert [found["certified_accuracy"][radius] for radius in ("0", "0.1")] == [0.5, 0.25]
    assert [found["smoothed_accuracy_pgd"][radius] for radius in ("0", "0.1")] == [0.75, 0.5]
    assert found["abstention_rate"] == 0.25


def test_difference_is_paired(results):
    found = overall_metrics(results)["difference"]
    for name in ("clean_accuracy", "robust_accuracy_worst"):
        clean, adv = (results.metrics[model][name] for model in results.models)
        assert found[name] == pytest.approx(adv - clean, abs=1e-5)
    name = "robust_accuracy_worst"
    assert found[f"{name}_permutation_p"] == 2 / 201, "none of 200 resamples changes as much"
    assert found[f"{name}_mcnemar_p"] < 0.001


def test_difference_of_equal_models_is_zero_without_interval(project):
    found = overall_metrics(read(make_table(n=30)))["difference"]
    assert found == {name: (1.0 if name.endswith("_p") else 0.0) for name in found}
    assert not [name for name in found if name.endswith("_low")]


def test_baselines_of_known_class_frequencies(project):
    found = overall_metrics(read(predicted([0, 0, 1, 2], [0] * 4)))
    assert found["majority_rate"] == 0.5
    assert found["prior_log_loss"] == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize(
    ("found", "median"), [([1, 1, 0, 1], {"median_min_eps": 0.02}), ([1, 0, 0, 1], {})]
)
def test_median_minimum_eps_is_of_correct_images_and_was_found(project, found, median):
    """The last of four images is misclassified without attack."""
    table = predicted([0, 1, 2, 0], [0, 1, 2, 1])
    required = table.head(4)[["path", "label"]].assign(eps=[0.01, 0.02, 0.25, 0.0], found=found)
    values = metrics_of(minimum_eps, read(table, results={"minimum_eps": required}))
    values = {name: value for name, value in values.items() if not name.endswith(("low", "high"))}
    assert values == {"min_eps_images": 3, **median}


def test_interval_of_the_median_is_where_the_band_crosses_one_half(results):
    curve = pd.DataFrame({"eps": range(5), "changed": [0, 0.3, 0.5, 0.7, 0.9], "count": 40})
    curve = curve.assign(low=[0, 0.1, 0.3, 0.5, 0.8], high=[0, 0.5, 0.7, 0.9, 1.0], model="clean")
    expected = {"min_eps_images": 40, "median_min_eps": 2}
    ends = {"median_min_eps_low": 1, "median_min_eps_high": 3}

    def found(curve):
        plots = replace(results, plots={"minimum_eps": curve})
        return minimum_eps.metrics(plots, results.models["clean"])

    assert found(curve) == expected | ends
    assert found(curve.iloc[:3]) == expected, "the upper end lies beyond what was tried"


def test_corrupted_accuracy_is_the_mean_over_severities(project):
    table = make_table(n=12, always="correct")
    corrupted = make_corruptions(table)
    corrupted = misclassified(corrupted, corrupted["severity"] == 3)
    assert metrics_of(corruptions, read(table, results={"corruptions": corrupted})) == {
        "corrupted_accuracy": dict.fromkeys(("blur", "jpeg"), pytest.approx(2 / 3)),
        "corrupted_images": 12,
    }
