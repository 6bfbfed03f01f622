"""The attacks in the other norm, where `attack.second_eps` asks for them."""

from typing import Any

from stages.attacks.registry import SUITE, ensemble
from stages.core.predictions import CLEAN, predictions_like, validate
from stages.measurements.context import Context, Measurement
from stages.measurements.suite import run_attacks

TABLE = predictions_like("second_norm")


def run(context: Context) -> dict[str, Any]:
    """second_norm.csv."""
    budget, rows = context.attack.second_budget, context.predictions
    assert budget is not None  # else it isn't run
    clean = rows[rows["attack"] == CLEAN].reset_index(drop=True)
    return {TABLE.name: validate(run_attacks(context, clean, budget)[0], TABLE.name)}


MEASUREMENT = Measurement(
    run,
    (TABLE,),
    steps=lambda c: len(SUITE) + len(ensemble(c.p, len(c.dataset.classes))),
    applies=lambda c: c.attack.second_budget is not None,
)
