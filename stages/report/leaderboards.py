"""The two main numbers of each model where others look for them: in RobustBench, on the Hub.

RobustBench's ``model_info`` JSON (github.com/RobustBench/robustbench, README: to submit a model)
and the Hub's ``.eval_results/*.yaml`` (github.com/huggingface/hub-docs, eval_results.yaml) are made
of the same records as the ``model-index`` of the model card. What only the authors know is null, or
left out where the format allows that; so is the date, which the Hub takes from the commit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.report.checks.registry import failed_checks
from stages.report.formatting import NBSP, listed, metric
from stages.report.page import dataset_name
from stages.report.results import Results

FOLDER = Path("data/leaderboards")


@dataclass(frozen=True)
class Record:
    """One of the main numbers.

    Attributes:
        key: of metrics/evaluate.json, and `task_id` of the benchmark.
        name: in texts.
        value: fraction of the test images, in [0, 1].
        notes: how it was measured, in one line.
    """

    key: str
    name: str
    value: float
    notes: str


def records(results: Results, model: str) -> list[Record]:
    """Clean and robust accuracy of a model."""
    values = results.metrics[model]
    images = f"n = {results.n} test images of {results.groups} {results.clusters}"
    images += "; synthetic images" if results.synthetic else ""
    threats = {
        "clean_accuracy": ("Clean accuracy", "no attack"),
        "robust_accuracy_worst": (
            f"Robust accuracy ({results.budget})",
            f"white-box, {results.budget}; an upper bound: worst case per image over "
            + listed([results.attack_label(attack) for attack in values["attacked_images"]]),
        ),
    }
    found = []
    for key, (name, threat) in threats.items():
        notes = f"{threat}; {metric(values, key)}, {results.level} CI; {images}"
        found.append(Record(key, name, values[key], notes.replace(NBSP, " ")))
    return found


def robustbench(results: Results, model: str) -> dict[str, Any]:
    """The content of RobustBench's model_info/<dataset>/<Linf or L2>/<name>.json.

    Accuracies are percentages as texts, as there. ``autoattack_acc`` is null: the pipeline's
    ensembles are not AutoAttack's standard version, which robustbench.benchmark runs.
    """
    clean, robust = (f"{100 * record.value:.2f}" for record in records(results, model))
    failed = any(name.startswith(f"{model} ") for name in failed_checks(results))
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": results.p.model.weights != "none",
        "number_forward_passes": 1,
        "dataset": dataset_name(results),
        "venue": None,
        "architecture": results.p.model.arch,
        "eps": results.budget.norm.format(results.eps),
        "clean_acc": clean,
        "reported": robust,
        "autoattack_acc": None,
        "footnote": records(results, model)[1].notes,
        "unreliable": failed,
    }


def eval_results(results: Results, model: str) -> str:
    """The content of .eval_results/<name>.yaml in the model's repository on the Hub."""
    entries = [
        {
            "dataset": {"id": dataset_name(results), "task_id": record.key},
            "value": record.value,
            "notes": record.notes,
        }
        for record in records(results, model)
    ]
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000)
