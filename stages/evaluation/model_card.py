"""The model card of both models (Mitchell et al., arXiv:1810.03993), as the Hugging Face Hub reads it: YAML, then Markdown."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.budgets import format_budget
from stages.core.dataset import is_transformation_zone
from stages.core.predictions import UNIVERSAL
from stages.evaluation import report_tables, summary
from stages.evaluation.conformal import ALPHA
from stages.evaluation.formatting import MODEL_LABELS, class_label, metric, percent
from stages.evaluation.report import Report

CORRUPTED = "corrupted_accuracy"  # the mean over all corruptions
UNIVERSAL_RATE = f"attack_success_rate.{UNIVERSAL}"
# (item, what it is about, keys of metrics/evaluate.json): which number is evidence for which item. NIST AI 100-1, the Measure
# function; Regulation (EU) 2024/1689, Article 15.
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
        ("robust_accuracy_worst", "attack_success_rate_worst", UNIVERSAL_RATE),
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
LABELS = {
    "clean_accuracy": "clean accuracy",
    "balanced_accuracy": "clean balanced accuracy",
    "log_loss": "log loss, clean",
    "ece": "expected calibration error, clean",
    "ece_worst": "expected calibration error, worst case",
    "conformal_coverage_clean": f"coverage of {1 - ALPHA:.0%} prediction sets, clean",
    "conformal_coverage_worst": f"coverage of {1 - ALPHA:.0%} prediction sets, worst case",
    "robust_accuracy_worst": "robust accuracy",
    "attack_success_rate_worst": "attack success rate",
    UNIVERSAL_RATE: "success rate of a universal perturbation",
    CORRUPTED: "accuracy under common corruptions, mean",
}


def escape_markdown(text: str) -> str:
    """A name, which may come from a folder, as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~$&])", r"\\\1", re.sub(r"\s+", " ", text))


def dataset_name(report: Report) -> str:
    """The last part of ``data.source``."""
    return report.params["data.source"].rstrip("/").split("/")[-1]


def front_matter(report: Report) -> str:
    """The metadata as YAML; the two accuracies as results of a ``model-index``."""
    tags = ["image-classification", "adversarial-robustness", "adversarial-training"]
    tags += ["medical", "colposcopy"] if is_transformation_zone(report.counts.index) else []
    tags += ["synthetic-data"] if report.data.get("synthetic") else []
    names = {
        "clean_accuracy": "Clean accuracy",
        "robust_accuracy_worst": f"Robust accuracy ({format_budget(report.metrics['eps'], report.norm)})",
    }
    index: list[dict[str, Any]] = []
    for model in report.evaluated:
        values = [
            {"type": "accuracy", "name": name, "value": report.metrics[model][key]}
            for key, name in names.items()
        ]
        dataset = {"type": dataset_name(report), "name": dataset_name(report), "split": "test"}
        results = [
            {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": values}
        ]
        index.append({"name": model, "results": results})
    content = {
        "license": "mit",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
        "model-index": index,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def evidence_rows(report: Report) -> list[tuple[str, str, str, list[str]]]:
    """(item, what it is about, number, cells): the numbers of each model that are evidence for an item of EVIDENCE."""
    corrupted = report_tables.corruption_rows(report.tables["corruptions"], report.evaluated)[-1][
        "cells"
    ]
    rows = []
    for item, about, keys in EVIDENCE:
        for key in keys:
            cells = (
                corrupted
                if key == CORRUPTED
                else [_number(report.metrics[model], key) for model in report.evaluated]
            )
            rows.append((item, about, LABELS[key], cells))
    return rows


def _number(values: Mapping[str, Any], key: str) -> str:
    """One metric with its interval; a dotted key is one attack's."""
    section, _, name = key.rpartition(".")
    return metric(
        values.get(section, {}) if section else values, name, unit="" if name == "log_loss" else "%"
    )


def render(report: Report) -> str:
    """The card as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # Markdown: what comes from names of files goes through the filter `escape`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "escape": escape_markdown,
        "class_label": class_label,
        "percent": percent,
    }
    transformation_zone = is_transformation_zone(report.counts.index)
    return environment.get_template("model_card.md.jinja").render(
        r=report,
        labels=MODEL_LABELS,
        heads=[MODEL_LABELS[model] for model in report.evaluated],
        front_matter=front_matter(report),
        dataset=dataset_name(report),
        transformation_zone=transformation_zone,
        budget=format_budget(report.metrics["eps"], report.norm),
        method=summary.method_name(report.params),
        clusters=summary.cluster_name(report.data),
        main_metrics=summary.main_metrics_table(report.metrics),
        attack_rows=report_tables.attack_rows(
            report.metrics, report.tables["robustness"], report.steps
        ),
        per_class=report_tables.per_class_rows(
            report.tables["per_class"], list(report.counts.index), report.evaluated
        ),
        min_eps_sentences=summary.min_eps_sentences(report.metrics, report.norm),
        conformal_sentences=summary.conformal_sentences(report.metrics),
        ensemble_sentences=summary.ensemble_sentences(report.ensembles),
        check_summary=summary.check_sentences(report.checks),
        caveats=summary.caveats(
            report.metrics, report.tables, report.counts, report.data, report.params
        ),
        limitations=summary.limitations(report.norm, transformation_zone=transformation_zone),
        coverage=1 - ALPHA,
        evidence=evidence_rows(report),
    )
