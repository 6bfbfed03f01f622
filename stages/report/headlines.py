"""The numbers and the sentence that a run is told in."""

from collections.abc import Mapping
from typing import Any

from stages.report.formatting import MODEL_LABELS, class_label, percent
from stages.report.results import Results

HEADLINES = {"clean_accuracy": "clean accuracy", "robust_accuracy_worst": "robust accuracy"}


def headlines(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of metrics/evaluate.json what metrics/headlines.json repeats: model -> metric -> value."""
    return {model: {name: metrics[model][name] for name in HEADLINES} for model in MODEL_LABELS}


def verdict(results: Results) -> str:
    """What the run has shown, in one or two sentences.

    A robust accuracy means something only of a model that tells the classes apart.
    """
    clean, adv = (results.metrics[model] for model in MODEL_LABELS)
    majority = results.images["label"].value_counts().idxmax()
    constant = f"always answering {class_label(majority)} ({percent(results.majority_rate)})"
    if not any(beats_majority(results, model) for model in MODEL_LABELS):
        return f"Neither model is better than {constant}: the robust accuracies mean nothing."
    if not beats_majority(results, "clean"):
        first = f"The standard model is not better than {constant}."
    else:
        first = (
            f"Attacks take the standard model from {percent(clean['clean_accuracy'])} to "
            f"{percent(clean['robust_accuracy_worst'])} accuracy."
        )
    if not beats_majority(results, "adv"):
        return f"{first} The adversarially fine-tuned one is not better than {constant}."
    return (
        f"{first} The adversarially fine-tuned one keeps {percent(adv['robust_accuracy_worst'])}, "
        f"at a clean accuracy of {percent(adv['clean_accuracy'])}."
    )


def beats_majority(results: Results, model: str) -> bool:
    """Whether the clean accuracy is significantly above that of the most frequent class."""
    return results.metrics[model].get("clean_accuracy_low", 0) > results.majority_rate
