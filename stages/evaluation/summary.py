"""The results in words: for the report and for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.core.budgets import NORM_SYMBOLS, format_budget, format_eps
from stages.core.checks import PASS
from stages.core.dataset import is_transformation_zone
from stages.core.params import other_norm
from stages.core.paths import MODELS
from stages.core.predictions import LEAN_ENSEMBLE, UNIVERSAL, UNIVERSAL_TRANSFER
from stages.evaluation.conformal import MIN_IMAGES as MIN_CALIBRATION_IMAGES
from stages.evaluation.formatting import MODEL_LABELS, class_label, listed, metric, p_value, percent
from stages.evaluation.selection import WORST

MIN_IMAGES_PER_CLASS = 10  # in the test split, below which a class's metrics are called unreliable
MIN_IMAGES = 100  # in the test split, and
MIN_GROUPS = 50  # patients, on whom the intervals rest
COLLAPSE = 0.9  # fraction of one class among the predictions under attack
# (key, label, unit): the rows of the main table; a paired difference exists for some
MAIN_METRICS = (
    ("clean_accuracy", "Clean accuracy", "%"),
    ("robust_accuracy_worst", "Robust accuracy (worst case over all attacks)", "%"),
    ("attack_success_rate_worst", "Attack success rate (of correctly classified images)", "%"),
    ("balanced_accuracy", "Clean balanced accuracy", "%"),
    ("balanced_robust_accuracy_worst", "Robust balanced accuracy", "%"),
    ("expected_robustness", "Mean robust accuracy over the ε grid", "%"),
    ("log_loss", "Log loss, clean", ""),
)
METHOD_NAMES = {
    "fgsm": "FGSM",
    "fgsm_rs": "FGSM-RS",
    "nfgsm": "N-FGSM",
    "pgd": "PGD",
    "trades": "TRADES",
    "mart": "MART",
    "free": "Free",
}


def evaluated_models(metrics: Mapping[str, Any]) -> list[str]:
    """The models that have metrics, clean first."""
    return [model for model in MODELS if model in metrics]


def cluster_name(data: Mapping[str, Any]) -> str:
    """What a group of images is, by metrics/data.json: patients where all are known, else patients or groups."""
    known = data.get("groups", {}).get("images_with_known_patient")
    return {data.get("images"): "patients", 0: "groups"}.get(known, "patients or groups")


def method_name(params: Mapping[str, Any]) -> str:
    """``N-FGSM``, ``PGD-10``, ``TRADES-10 + AWP``."""
    name, steps = METHOD_NAMES[params["train_adv.method"]], params["train_adv.steps"]
    if params["train_adv.method"] in ("pgd", "trades", "mart", "free"):
        name += f"-{steps}"
    return name + (" + AWP" if params["train_adv.awp"] else "")


def main_metrics_table(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: metric, one column per model, and the paired difference if there are two."""
    models, change = evaluated_models(metrics), metrics.get("difference")
    rows = [["", *(MODEL_LABELS[model] for model in models), *(["Difference"] if change else [])]]
    for key, label, unit in MAIN_METRICS:
        if any(key in metrics[model] for model in models):
            cells = [metric(metrics[model], key, unit=unit) for model in models]
            paired = (
                [metric(change, key, unit=unit, signed=True) if key in change else ""]
                if change
                else []
            )
            rows.append([label, *cells, *paired])
    return rows


def terminal_summary(metrics: Mapping[str, Any], level: str, norm: str) -> str:
    """The main metrics as text for the terminal."""
    rows = main_metrics_table(metrics)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    context = (
        f"n = {metrics['n']} test images in {metrics['groups']} groups; {format_budget(metrics['eps'], norm)}; "
        f"{level} confidence intervals in brackets"
    )
    baseline = (
        f"Majority-class baseline: accuracy {percent(metrics['majority_rate'])}; class-prior log loss "
        f"{metrics['prior_log_loss']:.3f}"
    )
    return "\n".join([context, *lines, baseline])


def summary_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """The main results, one sentence each."""
    sentences = []
    for model in evaluated_models(metrics):
        values, label = metrics[model], MODEL_LABELS[model]
        sentence = f"{label}: clean accuracy {metric(values, 'clean_accuracy')}, "
        sentence += f"robust accuracy {metric(values, 'robust_accuracy_worst')}."
        if "attack_success_rate_worst" in values:
            sentence += (
                f" Of the {values['clean_correct']} images classified correctly without attack, "
                f"{metric(values, 'attack_success_rate_worst')} are misclassified under attack."
            )
        else:
            sentence += " No image is classified correctly without attack, so there is no attack success rate."
        sentences.append(sentence)
    if change := metrics.get("difference"):
        parts = [
            f"{name} by {metric(change, key, signed=True)} ({p_value(change[f'{key}_permutation_p'])}, permutation test)"
            for key, name in (
                ("robust_accuracy_worst", "robust accuracy"),
                ("clean_accuracy", "clean accuracy"),
            )
        ]
        sentences.append(f"On the same images, adversarial fine-tuning changes {listed(parts)}.")
    sentences.append(
        f"The majority-class baseline has an accuracy of {percent(metrics['majority_rate'])}, with and without attack."
    )
    return sentences


def caveats(
    metrics: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    counts: pd.DataFrame,
    data: Mapping[str, Any],
    params: Mapping[str, Any],
) -> list[str]:
    """What limits these very results."""
    sentences = []
    for model in evaluated_models(metrics):
        sentences += _model_caveats(metrics, model, tables["confusion"], len(counts))
        accuracy = metrics[model]["clean_accuracy"]
        limit = params["evaluate.suspicious_accuracy"]
        if (
            accuracy > limit
            and not data.get("synthetic", False)
            and is_transformation_zone(counts.index)
        ):
            sentences.append(
                f"{MODEL_LABELS[model]}: a clean accuracy of {percent(accuracy)} is implausibly high for real colposcopy "
                f"images (above {percent(limit)}). Check for data leakage first: images of one patient in both training and "
                f"test, shortcut features, or wrong labels."
            )
    test = counts["test"]
    if absent := [class_label(name) for name, count in test.items() if count == 0]:
        sentences.append(f"No test image of {listed(absent)}.")
    if few := [
        f"{class_label(name)} ({count})"
        for name, count in test.items()
        if 0 < count < MIN_IMAGES_PER_CLASS
    ]:
        sentences.append(
            f"Fewer than {MIN_IMAGES_PER_CLASS} test images of {listed(few)}: unreliable estimates."
        )
    if metrics["n"] < MIN_IMAGES:
        sentences.append(
            f"Only {metrics['n']} test images: interpret the intervals, not the point estimates."
        )
    elif metrics["groups"] < MIN_GROUPS:
        sentences.append(
            f"Only {metrics['groups']} {cluster_name(data)} in the test split: interpret the intervals, not the point "
            "estimates."
        )
    if cluster_name(data) != "patients":
        sentences.append(
            "The patient is not known for all images: the intervals are too narrow, and the results too good, as far as "
            "patients are divided between training and test."
        )
    if missing := [label for model, label in MODEL_LABELS.items() if model not in metrics]:
        sentences.append(f"No predictions of: {listed(missing)}.")
    return sentences


def limitations(norm: str, *, transformation_zone: bool) -> list[str]:
    """What limits all results of this pipeline."""
    anatomy = (
        "The classes are types of the transformation zone: normal anatomy, not grades of disease. "
    )
    return [
        "Robust accuracy is an upper bound: a stronger attack can only lower it.",
        f"One threat model: white-box, digital, {NORM_SYMBOLS[norm]}-bounded. Larger perturbations in one spot (patches), "
        "physical attacks and data poisoning are out of scope.",
        "One run per model: another seed or another processor trains another model. The intervals contain no variance of "
        "training.",
        "Test images come from the same source as training images; another clinic, camera or population may differ more than "
        "any attack here.",
        (anatomy if transformation_zone else "") + "Not a medical device.",
    ]


def _model_caveats(
    metrics: Mapping[str, Any], model: str, confusion: pd.DataFrame, classes: int
) -> list[str]:
    values, label, majority = metrics[model], MODEL_LABELS[model], metrics["majority_rate"]
    sentences = []
    if values.get("clean_accuracy_low", 0) <= majority:
        sentences.append(
            f"{label}: clean accuracy ({percent(values['clean_accuracy'])}) is not significantly above the majority-class "
            f"baseline ({percent(majority)}); the robust accuracy of such a model is not meaningful."
        )
    if values["robust_accuracy_worst"] <= majority:
        sentences.append(
            f"{label}: robust accuracy ({percent(values['robust_accuracy_worst'])}) is not above the majority-class baseline "
            f"({percent(majority)})."
        )
    cells = confusion[(confusion["model"] == model) & (confusion["attack"] == WORST)]
    fractions = cells.groupby("predicted", sort=False)["count"].sum() / cells["count"].sum()
    if fractions.max() > COLLAPSE and classes > 1:
        sentences.append(
            f"{label}: under attack the model predicts {class_label(fractions.idxmax())} for {percent(fractions.max())} of the "
            f"images (prediction collapse)."
        )
    return sentences


def ensemble_sentences(ensembles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the attack ensemble consisted of, to be reported with its result: model -> ensemble.json."""
    config = next(iter(ensembles.values()))
    square = [
        f"{values['square_images']} of the {values['square_remaining']} images left ({MODEL_LABELS[model]})"
        for model, values in ensembles.items()
    ]
    if config["name"] == LEAN_ENSEMBLE:
        parts = (
            f"APGD on the margin to each of the {config['target_classes']} likeliest other classes and on the cross-entropy, "
            f"{config['iterations']} iterations each and a few more in float32"
        )
    else:
        parts = (
            f"attacks of AutoAttack ({listed(config['attacks'])}; {config['iterations']} iterations, "
            f"{config['target_classes']} target classes; {config['library']}), but not AutoAttack"
        )
    return [
        f"Ensemble {config['name']}, on what no attack before it found: {parts}; seed {config['seed']}.",
        f"Square comes last, as a check for masked gradients: {config['queries']} queries for each of {listed(square)}.",
    ]


def min_eps_sentences(metrics: Mapping[str, Any], norm: str) -> list[str]:
    """Per model the median minimum perturbation."""
    sentences = []
    for model in evaluated_models(metrics):
        values, label = metrics[model], MODEL_LABELS[model]
        n = values["min_eps_images"]
        if "median_min_eps" in values:
            ends = [
                format_eps(values[key], norm)
                for key in ("median_min_eps_low", "median_min_eps_high")
                if key in values
            ]
            interval = f" [{', '.join(ends)}]" if ends else ""
            sentences.append(
                f"{label}: median {format_eps(values['median_min_eps'], norm)}{interval} (n = {n})."
            )
        elif n:
            sentences.append(
                f"{label}: no eps that was tried suffices for half of the images (n = {n})."
            )
        else:
            sentences.append(f"{label}: no image is classified correctly without attack.")
    return sentences


def universal_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Per model how often the universal perturbations succeed, of itself and of the other model."""
    cases = {UNIVERSAL: "its own pattern", UNIVERSAL_TRANSFER: "that of the other model"}
    sentences = []
    for model in evaluated_models(metrics):
        rates = metrics[model].get("attack_success_rate", {})
        parts = [
            f"{metric(rates, attack)} under {words}"
            for attack, words in cases.items()
            if attack in rates
        ]
        if parts:
            sentences.append(
                f"{MODEL_LABELS[model]}: success rate {listed(parts)} (n = {metrics[model]['clean_correct']})."
            )
    return sentences


def second_budget(params: Mapping[str, Any]) -> str:
    """The second budget in words; empty without one."""
    eps = params["attack.second_eps"]
    return format_budget(eps, other_norm(params["attack.norm"])) if eps else ""


def second_norm_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Per model the robust accuracy within the second budget, and within both."""
    return [
        f"{MODEL_LABELS[model]}: robust accuracy {metric(metrics[model], 'robust_accuracy_second_norm')}; correct under all "
        f"attacks of both norms: {metric(metrics[model], 'robust_accuracy_both_norms')}."
        for model in evaluated_models(metrics)
        if "robust_accuracy_second_norm" in metrics[model]
    ]


def not_run(params: Mapping[str, Any]) -> list[str]:
    """What is off by its parameter."""
    return [
        *(
            []
            if params["attack.second_eps"]
            else ["attacks in a second norm (attack.second_eps is 0)"]
        ),
        *(
            ["transfer from a surrogate (attack_eval.surrogate is none)"]
            if params["attack_eval.surrogate"] == "none"
            else []
        ),
    ]


def conformal_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Per model coverage and mean size of the sets that are calibrated on clean images, or that the images are too few."""
    sentences = []
    for model in evaluated_models(metrics):
        values, label = metrics[model], MODEL_LABELS[model]
        n = values["conformal_images"]
        if "conformal_coverage_clean" in values:
            cases = [
                f"{metric(values, f'conformal_coverage_{case}')} of the test images {where} "
                f"({values[f'conformal_set_size_{case}']:.2f} classes on average)"
                for case, where in (("clean", "without attack"), ("worst", "in the worst case"))
            ]
            images = f"n = {n} clean validation images in {values['conformal_groups']} groups"
            sentences.append(
                f"{label}: calibrated on {images}, the sets contain the label of {listed(cases)}."
            )
        else:
            sentences.append(
                f"{label}: inconclusive, n = {n} validation images; with fewer than {MIN_CALIBRATION_IMAGES} every set holds "
                "all classes."
            )
    return sentences


def check_sentences(checks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """One sentence per model, ``Standard training: 22 of 25 passed; D7 WARN, D25 INFO.``."""
    sentences = []
    for model, results in checks.items():
        others = ", ".join(
            f"{check} {result['verdict']}"
            for check, result in results.items()
            if result["verdict"] != PASS
        )
        passed = sum(result["verdict"] == PASS for result in results.values())
        sentences.append(
            f"{MODEL_LABELS[model]}: {passed} of {len(results)} passed"
            + (f"; {others}." if others else ".")
        )
    return sentences


def curve_sentence(robustness: pd.DataFrame, models: Sequence[str], norm: str) -> str:
    """The robustness curve in words, for those who can't see it."""
    sentences = []
    for model in models:
        worst = robustness.query("model == @model and attack == @WORST")
        points = ", ".join(
            f"{percent(row.accuracy)} at {format_eps(row.eps, norm)}" for row in worst.itertuples()
        )
        sentences.append(f"{MODEL_LABELS[model]}: {points}")
    return "; ".join(sentences)


def training_sentences(training: Mapping[str, pd.DataFrame]) -> list[str]:
    """Per model the selected epoch and its validation accuracies."""
    sentences = []
    for model, curve in training.items():
        selected = curve[curve["chosen"] == 1].dropna(axis=1)
        if len(selected) == 1:
            row = selected.iloc[0]
            sentence = (
                f"{MODEL_LABELS[model]}: epoch {row['epoch']:.0f} of {len(curve)} was selected"
            )
            if "val_clean_accuracy" in row:
                sentence += f"; validation accuracy {percent(row['val_clean_accuracy'])}"
            if "val_robust_accuracy" in row:
                sentence += f", under attack {percent(row['val_robust_accuracy'])}"
            sentences.append(sentence + ".")
    return sentences
