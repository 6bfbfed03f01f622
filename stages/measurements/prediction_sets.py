"""Attacks on the conformal prediction sets of the evaluated model, at the main ε.

The label is pushed out of the sets of those images whose sets still contain it in the worst case of
the suite. All sets are enlarged, and of the two calibrations those calibrated under PGD: sets
calibrated on clean images often have room for one class only.
"""

from typing import Any

import numpy as np
import pandas as pd

from stages.attacks.prediction_sets import enlarge_set, exclude_label
from stages.core.conformal import MIN_IMAGES, label_scores, largest_scores, thresholds
from stages.core.predictions import predictions_like
from stages.measurements.context import Context, Measurement
from stages.measurements.suite import attack_batch, label_rows, to_rows

TABLE = predictions_like("set_attacks")
STEPS = 3  # of PGD: as many as cost less than ten seconds on a CPU


def run(context: Context) -> dict[str, Any]:
    """set_attacks.csv."""
    target, budget, p = context.target, context.attack.budget, context.p
    limits = thresholds(context.results["calibration"], budget.eps)
    worst = largest_scores(context.predictions, budget.eps).set_index("path")
    worst = worst.loc[context.images(target.everything, "path")["path"]]
    covered = np.flatnonzero(label_scores(worst) <= max(limits.values()))
    attacks = (
        (exclude_label(STEPS), covered),
        (enlarge_set(limits["pgd"], STEPS), target.everything),
    )
    tables = []
    for attack, positions in attacks:
        if not len(positions):
            context.steps.skip()
            continue
        step, arguments = f"{attack.name} {budget.short}", (attack, budget, p)
        result = context.steps.run(step, target, positions, attack_batch, *arguments)
        rows = to_rows(context, target, positions, result, attack.name)
        tables.append(label_rows(rows, attack.name, budget, STEPS))
    return {TABLE.name: pd.concat(tables, ignore_index=True)}


MEASUREMENT = Measurement(
    run,
    (TABLE,),
    steps=lambda context: 2,
    applies=lambda context: len(context.dataset.split_rows("val")) >= MIN_IMAGES,
)
