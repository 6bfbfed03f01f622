"""The validation images, clean and under PGD: what prediction sets are calibrated on.

PGD at the smaller ε comes first, as for the test images: the scores of validation and test images
are exchangeable only if both are computed in the same way.
"""

from typing import Any

import pandas as pd

from stages.attacks.white_box import pgd
from stages.core.predictions import predictions_like, validate
from stages.measurements.context import Context, Measurement
from stages.measurements.suite import attack_rows, clean_rows, schedule

TABLE = predictions_like("calibration")


def pgd_runs(context: Context) -> list[tuple[Any, Any, Any]]:
    """PGD at each ε up to the budget's."""
    budget = context.attack.budget
    order = schedule(context)
    return [run for run in order if run[0] is pgd and run[1].eps <= budget.eps]


def run(context: Context) -> dict[str, Any]:
    """calibration.csv."""
    target = context.validation(context.name)
    clean = under_pgd = clean_rows(context, target, "validation clean")
    for attack, budget, p in pgd_runs(context):
        step = f"validation {attack.name} {budget.short}"
        under_pgd = attack_rows(context, target, under_pgd, attack, budget, p, step)
    rows = pd.concat([clean, under_pgd], ignore_index=True)
    return {TABLE.name: validate(rows, TABLE.name)}


MEASUREMENT = Measurement(run, (TABLE,), lambda context: 1 + len(pgd_runs(context)))
