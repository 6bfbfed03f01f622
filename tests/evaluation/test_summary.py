"""The results in words: summary, caveats, and what can't be said."""

import dataclasses

import pytest
from stages.evaluation import summary
from stages.evaluation.formatting import NBSP, metric, percent
from stages.evaluation.summary import (
    caveats,
    check_sentences,
    cluster_name,
    curve_sentence,
    ensemble_sentences,
    main_metrics_table,
    method_name,
    min_eps_sentences,
    summary_sentences,
    terminal_summary,
    training_sentences,
)

from tests.helpers.prediction_tables import ENSEMBLE, EPS, make_table, make_training
from tests.helpers.reports import PARAMS, make_report

LEAKAGE = "Check for data leakage"


def caveats_of(report):
    return caveats(report.metrics, report.tables, report.counts, report.data, report.params)


def test_summary_gives_accuracies_success_rate_and_paired_difference():
    metrics = make_report().metrics
    values = metrics["clean"]
    clean, adv, change, baseline = summary_sentences(metrics)
    assert f"clean accuracy {metric(values, 'clean_accuracy')}, " in clean
    assert f"robust accuracy {metric(values, 'robust_accuracy_worst')}." in clean
    assert f"Of the {values['clean_correct']} images classified correctly without attack, " in clean
    assert f"{metric(values, 'attack_success_rate_worst')} are misclassified under attack." in clean
    assert adv.startswith("Adversarial fine-tuning: ")
    assert (
        f"robust accuracy by {metric(metrics['difference'], 'robust_accuracy_worst', signed=True)}"
        in change
    )
    assert change.count("permutation test") == 2
    assert percent(metrics["majority_rate"]) in baseline


def test_terminal_summary_is_a_table_with_differences():
    metrics = make_report().metrics
    lines = terminal_summary(metrics, "95%", "linf").splitlines()
    assert "120 test images" in lines[0]
    assert "L∞, ε = 8/255; 95% confidence intervals" in lines[0]
    assert lines[1].split("  ")[-1] == "Difference"
    assert "Standard training" in lines[1]
    assert f"{NBSP}pp [" in lines[2]
    assert max(map(len, lines)) < 130


@pytest.mark.parametrize("models", [("clean",), ("adv",)])
def test_single_model_has_no_difference(models):
    report = make_report(models)
    assert "Difference" not in terminal_summary(report.metrics, "95%", "linf")
    assert not any("permutation test" in sentence for sentence in summary_sentences(report.metrics))
    assert all(len(row) == 2 for row in main_metrics_table(report.metrics))


def test_leakage_caveat_is_about_real_images_of_high_accuracy_only():
    threshold = {"evaluate.suspicious_accuracy": 0.5}
    synthetic, real = (
        make_report(data={"synthetic": value}, params=threshold) for value in (True, False)
    )
    assert any(LEAKAGE in sentence for sentence in caveats_of(real))
    assert not any(LEAKAGE in sentence for sentence in caveats_of(synthetic))
    plausible = dataclasses.replace(real, params=PARAMS | {"evaluate.suspicious_accuracy": 1.0})
    assert not any(LEAKAGE in sentence for sentence in caveats_of(plausible))
    other = dataclasses.replace(
        real, counts=real.counts.rename(index=lambda name: name.replace("Type", "cell"))
    )
    assert not any(LEAKAGE in sentence for sentence in caveats_of(other)), (
        "cells are easier to tell apart"
    )


def test_caveats_name_what_is_weak():
    constant = make_table("clean", 30).assign(prediction="Type_2")
    report = make_report(tables={"clean": constant[constant["label"] != "Type_3"]})
    text = " ".join(caveats_of(report))
    assert "is not significantly above the majority-class baseline" in text
    assert (
        "under attack the model predicts Type 2 for 100.0% of the images (prediction collapse)"
        in text
    )
    assert "No test image of Type 3." in text
    assert "Fewer than 10 test images of Type 1" in text
    assert "No predictions of: Adversarial fine-tuning." in text
    assert f"Only {report.metrics['n']} test images: interpret the intervals" in text


def test_few_patients_are_a_caveat_with_many_images():
    report = make_report(tables={"clean": make_table("clean", 120, per_group=10)})
    assert any(
        "Only 12 patients or groups in the test split: interpret" in sentence
        for sentence in caveats_of(report)
    )


def test_unknown_patients_are_a_caveat():
    known = {"images": 100, "groups": {"images_with_known_patient": 100, "total": 60}}
    grouped = {"clean": make_table("clean", per_group=4)}
    assert not any(
        "patient is not" in sentence
        for sentence in caveats_of(make_report(tables=grouped, data=known))
    )
    assert not any(
        "patient is not" in sentence for sentence in caveats_of(make_report(data=known))
    )  # one image of each
    for count in (0, 99):
        unknown = {"images": 100, "groups": {"images_with_known_patient": count, "total": 60}}
        assert any(
            "patient is not" in sentence
            for sentence in caveats_of(make_report(tables=grouped, data=unknown))
        )


def test_model_without_correct_image_has_no_success_rate():
    table = make_table("clean", 20)
    wrong = table.assign(
        prediction=table["label"].map({"Type_1": "Type_2", "Type_2": "Type_3", "Type_3": "Type_1"})
    )
    metrics = make_report(tables={"clean": wrong}).metrics
    assert summary_sentences(metrics)[0].endswith(
        "No image is classified correctly without attack, so there is no attack success rate."
    )
    assert min_eps_sentences(metrics, "linf") == [
        "Standard training: no image is classified correctly without attack."
    ]


def test_median_minimum_eps_is_given_or_said_to_be_beyond_the_search():
    interval = {"median_min_eps_low": 3 / 255, "median_min_eps_high": 6 / 255}
    found = {
        "clean": {"median_min_eps": 4 / 255, "min_eps_images": 14} | interval,
        "adv": {"min_eps_images": 9},
    }
    assert min_eps_sentences(found, "linf") == [
        "Standard training: median 4/255 [3/255, 6/255] (n = 14).",
        "Adversarial fine-tuning: no eps that was tried suffices for half of the images (n = 9).",
    ]


def test_lean_ensemble_is_described_with_the_images_of_square():
    apgd, square = ensemble_sentences(
        {"clean": ENSEMBLE, "adv": ENSEMBLE | {"square_images": 64, "square_remaining": 90}}
    )
    assert apgd.startswith(
        "Ensemble apgd, on what no attack before it found: APGD on the margin to each of the 2 likeliest other "
    )
    assert "20 iterations" in apgd
    assert square.endswith(
        "100 queries for each of 20 of the 40 images left (Standard training) and 64 of the 90 images left "
        "(Adversarial fine-tuning)."
    )


def test_full_ensemble_is_described_and_not_called_autoattack():
    full = ENSEMBLE | {"name": "aa-k3", "attacks": ["apgd_ce", "square"]}
    (sentence, _) = ensemble_sentences({"clean": full})
    assert (
        "attacks of AutoAttack (apgd_ce and square; 20 iterations, 2 target classes; pyautoattack 0.2.0)"
        in sentence
    )
    assert "but not AutoAttack" in sentence


def test_checks_are_counted_and_those_that_do_not_pass_named():
    passed, warned = {"verdict": "PASS"}, {"verdict": "WARN"}
    checks = {"clean": {"D1": passed, "D7": warned}, "adv": {"D1": passed}}
    assert check_sentences(checks) == [
        "Standard training: 1 of 2 passed; D7 WARN.",
        "Adversarial fine-tuning: 1 of 1 passed.",
    ]


def test_curve_and_training_are_told_in_words():
    report = make_report()
    curve = curve_sentence(report.tables["robustness"], ["clean", "adv"], "linf")
    robust = percent(report.metrics["adv"]["robust_accuracy_worst"])
    assert curve.startswith(
        f"Standard training: {percent(report.metrics['clean']['clean_accuracy'])} at 0, "
    )
    assert curve.endswith(f"{robust} at 8/255")
    (sentence,) = training_sentences({"clean": make_training(12, peak=0.75, robust=0.1)})
    assert sentence.startswith(
        "Standard training: epoch 11 of 12 was selected; validation accuracy 7"
    )
    assert ", under attack " in sentence
    assert training_sentences({"clean": make_training()[["epoch", "chosen"]]}) == [
        "Standard training: epoch 11 of 12 was selected."
    ]


def test_clusters_are_patients_only_where_all_are_known():
    assert cluster_name({"images": 20, "groups": {"images_with_known_patient": 20}}) == "patients"
    assert (
        cluster_name({"images": 20, "groups": {"images_with_known_patient": 7}})
        == "patients or groups"
    )
    assert cluster_name({"images": 20, "groups": {"images_with_known_patient": 0}}) == "groups"


@pytest.mark.parametrize(
    ("method", "steps", "awp", "name"),
    [
        ("nfgsm", 1, 0.0, "N-FGSM"),
        ("pgd", 10, 0.0, "PGD-10"),
        ("trades", 10, 0.01, "TRADES-10 + AWP"),
    ],
)
def test_training_method_is_named_with_its_steps(method, steps, awp, name):
    assert (
        method_name({"train_adv.method": method, "train_adv.steps": steps, "train_adv.awp": awp})
        == name
    )


def test_main_metrics_are_those_of_evaluate_json():
    metrics = make_report().metrics
    rows = {row[0]: row[1:] for row in main_metrics_table(metrics)}
    assert rows["Clean accuracy"][:2] == [
        metric(metrics[model], "clean_accuracy") for model in ("clean", "adv")
    ]
    assert rows["Clean accuracy"][2] == metric(metrics["difference"], "clean_accuracy", signed=True)
    assert rows["Log loss, clean"][2] == ""
    assert metrics["eps"] == EPS


def test_universal_second_norm_and_what_was_not_run_in_words():
    values = {
        "clean_correct": 90,
        "attack_success_rate": {"universal": 0.25},
        "robust_accuracy_second_norm": 0.5,
    }
    metrics = {"clean": values | {"robust_accuracy_both_norms": 0.4}, "adv": {"clean_correct": 80}}
    assert summary.universal_sentences(metrics) == [
        "Standard training: success rate 25.0% under its own pattern (n = 90)."
    ]
    (sentence,) = summary.second_norm_sentences(metrics)
    assert (
        sentence
        == "Standard training: robust accuracy 50.0%; correct under all attacks of both norms: 40.0%."
    )
    params = {"attack.norm": "linf", "attack.second_eps": 0, "attack_eval.surrogate": "none"}
    assert summary.second_budget(params) == ""
    assert [text.partition(" (")[2] for text in summary.not_run(params)] == [
        "attack.second_eps is 0)",
        "attack_eval.surrogate is none)",
    ]
    params |= {"attack.second_eps": 0.5, "attack_eval.surrogate": "a.safetensors"}
    assert summary.second_budget(params) == "L2, ε = 0.5"
    assert not summary.not_run(params)
