"""Rows of the table of predictions (`stages.core.predictions`), selected by attack and eps; per image the worst case."""

import numpy as np
import pandas as pd

from stages.core.predictions import CLEAN

WORST = "worst"  # not an attack: per image the most harmful of all that were run
EPS_TOLERANCE = 1e-4  # relative; tables hold eps to 6 digits


def select_predictions(table: pd.DataFrame, attack: str = CLEAN, eps: float = 0.0) -> pd.DataFrame:
    """(n rows) the predictions under one attack at one eps, one row per image, sorted by path."""
    rows = table[
        (table["attack"] == attack) & np.isclose(table["eps"], eps, rtol=EPS_TOLERANCE, atol=0)
    ]
    return rows.sort_values("path", ignore_index=True)


def worst_case_predictions(table: pd.DataFrame, eps: float) -> pd.DataFrame:
    """(n rows) per image the most harmful prediction within eps, sorted by path.

    A wrong one if there is any, then the lowest margin. Attacks at smaller eps count, an image within 2/255 is within 4/255;
    so does the clean image.
    """
    rows = table[table["eps"] <= eps * (1 + EPS_TOLERANCE)]
    rows = rows.assign(correct=is_correct(rows)).sort_values(
        ["path", "correct", "margin", "eps", "attack"]
    )
    return rows.drop_duplicates("path").drop(columns="correct").reset_index(drop=True)


def is_correct(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) bool: the prediction is the label."""
    return (rows["label"] == rows["prediction"]).to_numpy()


def correct_under(table: pd.DataFrame, attack: str, eps: float) -> np.ndarray:
    """(n,) bool: which images are classified correctly under the attack, sorted by path."""
    return is_correct(select_predictions(table, attack, eps))


def eps_values(table: pd.DataFrame) -> list[float]:
    """Every eps that some attack was run at, ascending, without 0."""
    return sorted(set(table.loc[table["attack"] != CLEAN, "eps"]))


def attacks_at(table: pd.DataFrame, eps: float) -> list[str]:
    """The attacks run at an eps, in the order of the table."""
    return list(
        dict.fromkeys(
            table.loc[np.isclose(table["eps"], eps, rtol=EPS_TOLERANCE, atol=0), "attack"]
        )
    )
