"""Robust accuracy within a second budget, in the other norm."""

from typing import Any

from stages.core.predictions import eps_values, is_correct, within, worst_case
from stages.report.blocks import Block, Items, Text
from stages.report.formatting import metric
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Robust accuracy in the other norm, and under both budgets: correct under every attack."""
    if results.p.attack.second_budget is None:
        return {}
    rows = model.table("second_norm")
    eps = max(eps_values(rows))
    robust = is_correct(worst_case(within(rows, eps)))
    both = robust & is_correct(results.worst(model))
    result: dict[str, Any] = {"second_eps": eps}
    for name, correct in (("second_norm", robust), ("both_norms", both)):
        interval = results.intervals.proportion(correct)
        result |= with_interval(f"robust_accuracy_{name}", correct.mean(), interval)
    return result


def blocks(results: Results) -> list[Block]:
    """What it is, and the results; nothing where no second budget is set."""
    budget = results.p.attack.second_budget
    if budget is None:
        return []
    texts = []
    for model in results.models.values():
        values = results.metrics[model.name]
        texts.append(
            f"{model.label}: robust accuracy {metric(values, 'robust_accuracy_second_norm')}; "
            "correct under all attacks of both norms: "
            f"{metric(values, 'robust_accuracy_both_norms')}."
        )
    return [
        Text(
            f"The same attacks and ensemble, within another budget: {budget}. Robustness in one "
            "norm promises none in another."
        ),
        Items(texts),
    ]


SECTION = Section("second-norm", "A second norm", blocks, metrics=metrics)
