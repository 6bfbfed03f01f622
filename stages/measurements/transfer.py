"""Each model under attacks made for the other one: PGD, and the universal perturbation."""

import itertools
from typing import Any

import pandas as pd

from stages.attacks.attack import Attack
from stages.attacks.transfer import pgd_on
from stages.attacks.universal import add_perturbation
from stages.core.predictions import CLEAN, predictions_like
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.suite import ATTACKS, attack_rows, clean_rows, describe

TRANSFER_ATTACKS = Table("transfer_attacks", ATTACKS.columns)
TABLE = predictions_like("transfer", target=(str, "the model that is attacked: clean or adv"))


def run(context: Context) -> dict[str, Any]:
    """transfer.csv, about both models: attacks on the model of standard training come with adv."""
    budget, p = context.attack.budget, context.p
    tables: list[pd.DataFrame] = []
    attacks: tuple[Attack, ...] = ()
    for source, target in itertools.permutations(context.models, 2):
        model = context.models[target]
        if target == context.name:
            rows = context.predictions
            clean = rows[rows["attack"] == CLEAN].reset_index(drop=True)
            context.steps.skip()
        else:
            clean = clean_rows(context, model, f"clean, of {target}")
        attacks = (
            pgd_on(context.models[source].fused_model),
            add_perturbation(context.perturbations[source], of_other_model=True),
        )
        for attack in attacks:
            step = f"{attack.name} to {target}"
            rows = attack_rows(context, model, clean, attack, budget, p, step)
            tables.append(rows.assign(target=target))
    rows = pd.concat(tables, ignore_index=True)[list(TABLE.all_columns(tables[0]))]
    return {TABLE.name: rows, TRANSFER_ATTACKS.name: describe(attacks)}


MEASUREMENT = Measurement(
    run,
    (TABLE, TRANSFER_ATTACKS),
    steps=lambda context: 6,
    applies=lambda context: len(context.models) > 1,
)
