"""The model card of both models (Mitchell et al., arXiv:1810.03993), for the Hugging Face Hub.

YAML, then Markdown.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.report.formatting import class_label, metric, percent
from stages.report.leaderboards import records
from stages.report.page import dataset_name
from stages.report.results import Results
from stages.report.sections import (
    attacks,
    classes,
    conformal,
    corruptions,
    diagnostics,
    limitations,
    minimum_eps,
    summary,
    training,
)

CORRUPTED = "corrupted_accuracy"  # the mean over all corruptions
UNIVERSAL = "attack_success_rate.universal"
# (item, what it is about, keys of metrics/evaluate.json): which number is evidence for which item.
# NIST AI 100-1, the Measure function; Regulation (EU) 2024/1689, Article 15.
EVIDENCE = (
    (
        "NIST AI RMF, MEASURE 2.5",
        "validity and reliability",
        ("clean_accuracy", "balanced_accuracy", "ece", "conformal_coverage_clean"),
    ),
    ("NIST AI RMF, MEASURE 2.6", "safety", (CORRUPTED, "ece_worst", "conformal_coverage_worst")),
    (
        "NIST AI RMF, MEASURE 2.7",
        "security and resilience",
        ("robust_accuracy_worst", "attack_success_rate_worst", UNIVERSAL),
    ),
    (
        "EU AI Act, Article 15(1) and (3)",
        "accuracy",
        ("clean_accuracy", "balanced_accuracy", "log_loss"),
    ),
    ("EU AI Act, Article 15(4)", "robustness against errors and faults", (CORRUPTED,)),
    (
        "EU AI Act, Article 15(5)",
        "cybersecurity: adversarial examples",
        ("robust_accuracy_worst", "attack_success_rate_worst"),
    ),
)
COVERAGE = 1 - conformal.ALPHA
LABELS = {
    "clean_accuracy": "clean accuracy",
    "balanced_accuracy": "clean balanced accuracy",
    "log_loss": "log loss, clean",
    "ece": "expected calibration error, clean",
    "ece_worst": "expected calibration error, worst case",
    "conformal_coverage_clean": f"coverage of {COVERAGE:.0%} prediction sets, clean",
    "conformal_coverage_worst": f"coverage of {COVERAGE:.0%} prediction sets, worst case",
    "robust_accuracy_worst": "robust accuracy",
    "attack_success_rate_worst": "attack success rate",
    UNIVERSAL: "success rate of a universal perturbation",
    CORRUPTED: "accuracy under common corruptions, mean",
}


def escape_markdown(text: str) -> str:
    """A name, which may come from a folder, as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~$&])", r"\\\1", re.sub(r"\s+", " ", text))


def escaped_label(name: str) -> str:
    """The name of a class in Markdown."""
    return escape_markdown(class_label(name))


def front_matter(results: Results) -> str:
    """The metadata as YAML; the two accuracies as results of a ``model-index``."""
    tags = ["image-classification", "adversarial-robustness", "adversarial-training"]
    tags += ["medical", "colposcopy"] if results.transformation_zone else []
    tags += ["synthetic-data"] if results.synthetic else []
    name = dataset_name(results)
    index: list[dict[str, Any]] = []
    for model in results.models:
        values = [
            {"type": "accuracy", "name": record.name, "value": record.value}
            for record in records(results, model)
        ]
        found = {
            "task": {"type": "image-classification"},
            "dataset": {"type": name, "name": name, "split": "test"},
            "metrics": values,
        }
        index.append({"name": model, "results": [found]})
    content = {
        "license": "mit",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
        "model-index": index,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def evidence_rows(results: Results) -> list[tuple[str, str, str, list[str]]]:
    """(item, what it is about, number, cells): of each model, for each item of EVIDENCE."""
    rows = []
    for item, about, keys in EVIDENCE:
        for key in keys:
            if key == CORRUPTED:
                cells = corruptions.mean_accuracies(results)
            else:
                cells = [_number(results.metrics[model], key) for model in results.models]
            rows.append((item, about, LABELS[key], cells))
    return rows


def _number(values: dict[str, Any], key: str) -> str:
    """One metric with its interval; a dotted key is one attack's."""
    section, _, name = key.rpartition(".")
    return metric(
        values.get(section, {}) if section else values, name, unit="" if name == "log_loss" else "%"
    )


def training_lines(results: Results) -> list[str]:
    """How each model was trained."""
    lines = []
    for model in results.models.values():
        p = training.training_params(results, model.name)
        if model.name == "adv":
            method = training.method_name(results.p.train_adv)
            start = f"initialized with the model of standard training; {method} within "
            start += str(results.budget)
        else:
            weights = results.p.model.weights
            words = {
                "none": "random initial weights",
                "imagenet": "ImageNet weights, with a license of their own; ImageNet's images are "
                "for non-commercial research",
            }
            other = f"initial weights {escape_markdown(weights)}"
            start = f"{words.get(weights, other)}; clean images"
        lines.append(
            f"**{model.label}**: {start}; {p.epochs} epochs, batch size {p.batch_size}, "
            f"{p.optimizer}, peak learning rate {p.lr}; seed {results.p.seed}."
        )
    return lines


def render(results: Results) -> str:
    """The card as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # Markdown: names of files go through the filter `escape`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escape": escape_markdown, "label": escaped_label}
    return environment.get_template("model_card.md.jinja").render(
        r=results,
        heads=[model.label for model in results.models.values()],
        files=[model.document("model") for model in results.models.values()],
        front_matter=front_matter(results),
        dataset=dataset_name(results),
        training_lines=training_lines(results),
        ensemble_sentences=attacks.ensemble_sentences(results),
        main_metrics=summary.main_table(results),
        majority_rate=percent(results.majority_rate),
        attack_rows=attacks.attack_rows(results),
        per_class=classes.per_class_rows(results),
        min_eps_sentences=minimum_eps.sentences(results),
        coverage=percent(COVERAGE),
        conformal_sentences=conformal.sentences(results),
        check_sentences=diagnostics.sentences(results),
        limits=[*summary.caveats(results, escaped_label), *limitations.sentences(results)],
        evidence=evidence_rows(results),
    )
