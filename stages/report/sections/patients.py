"""Patients rather than images: accuracy by patient, and how many images an attacker must change.

A group of images is a patient where the patient is known, else what shows the same scene. It is
counted in two ways: all of its images are classified correctly; or more than half of them, the
majority vote. A tie is no majority. Patients are independent, so proportions of them get Wilson
intervals.
"""

from typing import Any

import numpy as np
import pandas as pd

from stages.core.predictions import is_correct, select
from stages.report.blocks import Block, Cell, Table, Text, row
from stages.report.formatting import NOT_AVAILABLE, metric, percent
from stages.report.intervals import wilson_interval
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section

RULES = {"all": "all images correct", "vote": "majority vote"}
CASES = {"clean_accuracy": "clean", "robust_accuracy_worst": "worst case"}


def votes(results: Results, model: ModelResults) -> pd.DataFrame:
    """Per group the number of ``images``, and how many are correct: ``clean``, ``worst`` case.

    ``to_turn``: how many correct images must be changed until no majority is correct; 0 where none
    is without attack.
    """
    outcomes = pd.DataFrame(
        {
            "images": 1,
            "clean": is_correct(select(model.rows)),
            "worst": is_correct(results.worst(model)),
        }
    )
    table = outcomes.groupby(results.images["group"].to_numpy()).sum()
    table["to_turn"] = (table["clean"] - table["images"] // 2).clip(lower=0)
    return table


def turned(table: pd.DataFrame) -> np.ndarray:
    """(groups,) bool: the vote is correct without attack, and not in the worst case."""
    return ((table["to_turn"] > 0) & (2 * table["worst"] <= table["images"])).to_numpy()


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Accuracy by patient, clean and in the worst case; images to attack where the vote turns."""
    table, confidence = votes(results, model), results.intervals.confidence
    result: dict[str, Any] = {}
    for case, correct in zip(CASES, (table["clean"], table["worst"]), strict=True):
        all_correct, majority = correct == table["images"], 2 * correct > table["images"]
        for rule, hits in zip(RULES, (all_correct, majority), strict=True):
            interval = wilson_interval(hits.mean(), len(table), confidence)
            result |= with_interval(f"patient_{case}_{rule}", hits.mean(), interval)
    chosen = table[turned(table)]
    result["votes_correct"] = int((table["to_turn"] > 0).sum())
    result["votes_turned"] = len(chosen)
    if len(chosen):
        result["images_to_turn_vote"] = float(chosen["to_turn"].mean())
        result["images_of_turned_vote"] = float(chosen["images"].mean())
    return result


def accuracy_table(results: Results) -> Table:
    """Two rules, clean and in the worst case."""
    body = []
    for rule, name in RULES.items():
        for case, label in CASES.items():
            key = f"patient_{case}_{rule}"
            cells = [metric(results.metrics[model], key) for model in results.models]
            body.append(row(f"{name}, {label}", *cells))
    labels = [Cell(model.label, "th", {"scope": "col"}) for model in results.models.values()]
    title = (
        f"Accuracy by patient, n = {results.groups} {results.clusters}, with {results.level} "
        "confidence intervals. Source: metrics/evaluate.json."
    )
    return Table(title, [[Cell(""), *labels]], body)


def turned_sentence(results: Results) -> str:
    """How many images an attacker must change."""
    parts = []
    for model in results.models.values():
        values = results.metrics[model.name]
        count, correct = values["votes_turned"], values["votes_correct"]
        share = percent(count / correct) if correct else NOT_AVAILABLE
        text = f"{model.label}: {count} of {correct} correct votes turn ({share})"
        if count:
            text += (
                f", after an attack on {values['images_to_turn_vote']:.1f} of "
                f"{values['images_of_turned_vote']:.1f} images on average"
            )
        parts.append(text)
    return "; ".join(parts) + "."


def blocks(results: Results) -> list[Block]:
    """A table, and how many images an attacker must change; nothing where a patient has one."""
    if results.groups == results.n:
        return []
    return [
        Text(
            "The majority vote is correct where more than half of a patient’s images are; each "
            f"image may be attacked within {results.budget}. " + turned_sentence(results)
        ),
        accuracy_table(results),
    ]


SECTION = Section("patients", "Accuracy by patient", blocks, metrics=metrics, level=3)
