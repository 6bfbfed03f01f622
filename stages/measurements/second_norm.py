"""The attacks in the other norm, where `attack.second_eps` asks for them."""

from dataclasses import replace
from typing import Any

from stages.attacks.registry import SUITE, ensemble
from stages.core.predictions import predictions_like
from stages.measurements import suite
from stages.measurements.context import Context, Measurement

TABLE = predictions_like("second_norm")


def run(context: Context) -> dict[str, Any]:
    """second_norm.csv: the suite and the ensemble, with neither a grid nor universal patterns."""
    budget = context.attack.second_budget
    assert budget is not None  # else it isn't run
    changes = {"norm": budget.norm.name, "eps": budget.eps, "eps_grid": ()}
    attack = context.attack.model_copy(update=changes)
    other = replace(context, attack=attack, surrogate=None, perturbations={})
    return {TABLE.name: suite.run(other)["predictions"]}


MEASUREMENT = Measurement(
    run,
    (TABLE,),
    steps=lambda c: 1 + len(SUITE) + len(ensemble(c.p, len(c.dataset.classes))),
    applies=lambda c: c.attack.second_budget is not None,
)
