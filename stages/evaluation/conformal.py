"""Split conformal prediction: sets of classes that contain the label with a chosen probability (arXiv:2107.07511).

The score of a class is 1 minus its probability (LAC, Sadinle et al. 2019, arXiv:1609.00451). A quantile of the scores that the
labels of n calibration images have is the threshold; a set holds the classes whose score doesn't exceed it, possibly none.
Where calibration and test images are exchangeable, a set contains the label with a probability of at least 1 - alpha, whatever
the model. Attacked images and clean ones are not exchangeable: what an attack costs shows as missing coverage.
"""

import math

import numpy as np
import pandas as pd

from stages.core.predictions import CALIBRATION_ATTACKS, CLEAN, probabilities
from stages.evaluation.metrics import EvaluationContext, label_probabilities, with_interval
from stages.evaluation.selection import EPS_TOLERANCE, WORST, attacks_at, select_predictions

ALPHA = 0.1  # one minus the coverage that is aimed at
MIN_IMAGES = math.ceil(
    1 / ALPHA - 1
)  # calibration images below which only the set of all classes has that coverage


def label_scores(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) score of each image's label, in [0, 1]; 0 = certain."""
    return 1 - label_probabilities(rows)


def conformal_quantile(scores: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores: the quantile with the correction for a finite sample.

    Infinite where n < 1 / alpha - 1: then all classes are in a set.
    """
    rank = math.ceil(
        round((len(scores) + 1) * (1 - alpha), 9)
    )  # 20 * 0.85 may be a little more than 17
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def prediction_sets(rows: pd.DataFrame, threshold: float) -> np.ndarray:
    """(rows, classes) bool: the classes whose score is at most the threshold."""
    return 1 - probabilities(rows) <= threshold


def largest_scores(table: pd.DataFrame, eps: float) -> pd.DataFrame:
    """(n rows) per image the prediction within eps that gives its label the largest score, sorted by path.

    A set that contains the label under it contains the label under every attack, and without one.
    """
    rows = table[table["eps"] <= eps * (1 + EPS_TOLERANCE)]
    rows = rows.assign(p_label=label_probabilities(rows)).sort_values(
        ["path", "p_label", "eps", "attack"]
    )
    return rows.drop_duplicates("path").drop(columns="p_label").reset_index(drop=True)


def conformal_table(
    model: str, table: pd.DataFrame, calibration: pd.DataFrame, context: EvaluationContext
) -> pd.DataFrame:
    """model,calibration,attack,coverage,low,high,set_size,count: clean, under each attack at eps, and in the worst case.

    ``coverage`` is the fraction of the test images whose label is in the set, ``set_size`` the mean number of classes in it.
    No rows where the calibration images are too few.

    Args:
        model: one of MODELS.
        table: predictions.csv, of the test images.
        calibration: calibration.csv, of the validation images; calibrated on those of each of CALIBRATION_ATTACKS.
        context: eps, and the intervals of the test images.
    """
    cases = {CLEAN: select_predictions(table)}
    cases |= {
        attack: select_predictions(table, attack, context.eps)
        for attack in attacks_at(table, context.eps)
    }
    cases[WORST] = largest_scores(table, context.eps)
    cells = []
    for calibrated_on in CALIBRATION_ATTACKS:
        images = select_predictions(
            calibration, calibrated_on, 0.0 if calibrated_on == CLEAN else context.eps
        )
        threshold = conformal_quantile(label_scores(images), ALPHA)
        for attack, rows in cases.items() if math.isfinite(threshold) else ():
            covered, sizes = (
                label_scores(rows) <= threshold,
                prediction_sets(rows, threshold).sum(axis=1),
            )
            interval = context.intervals.proportion(covered)
            cells.append(
                (model, calibrated_on, attack, covered.mean(), *interval, sizes.mean(), len(rows))
            )
    columns = ["model", "calibration", "attack", "coverage", "low", "high", "set_size", "count"]
    return pd.DataFrame(cells, columns=columns)


def conformal_metrics(rows: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, float]:
    """Coverage and mean set size on clean images and in the worst case, for each calibration; none where images are too few.

    Args:
        rows: of one model in plots/conformal.csv.
        calibration: calibration.csv of this model.
    """
    images = calibration[["path", "group"]].nunique()
    result: dict[str, float] = {
        "conformal_images": int(images["path"]),
        "conformal_groups": int(images["group"]),
    }
    cases = {CLEAN: "clean", WORST: "worst"}
    for row in rows[rows["attack"].isin(cases)].to_dict("records"):
        prefix = "conformal" if row["calibration"] == CLEAN else f"conformal_{row['calibration']}"
        case = cases[row["attack"]]
        result |= with_interval(
            f"{prefix}_coverage_{case}", row["coverage"], (row["low"], row["high"])
        )
        result[f"{prefix}_set_size_{case}"] = float(row["set_size"])
    return result
