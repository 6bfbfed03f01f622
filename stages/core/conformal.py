"""Conformal prediction: sets of classes that contain the label with a chosen probability.

Split conformal prediction (arXiv:2107.07511). The score of a class is 1 minus its probability (LAC,
Sadinle et al. 2019, arXiv:1609.00451). A quantile of the scores that the labels of n calibration
images have is the threshold; a set holds the classes whose score doesn't exceed it, possibly none.
Where calibration and test images are exchangeable, a set contains the label with a probability of
at least 1 - alpha, whatever the model. Attacked images and clean ones are not exchangeable: what an
attack costs shows as missing coverage.
"""

import math

import numpy as np
import pandas as pd

from stages.core.predictions import CLEAN, label_probabilities, probabilities, select, within

ALPHA = 0.1  # one minus the coverage that is aimed at
MIN_IMAGES = math.ceil(1 / ALPHA - 1)  # below, only the set of all classes has that coverage
CALIBRATIONS = (CLEAN, "pgd")  # what calibration.csv has of the validation images


def label_scores(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) score of each image's label, in [0, 1]; 0 = certain."""
    return 1 - label_probabilities(rows)


def conformal_quantile(scores: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores: with the correction for finite samples.

    Infinite where n < 1 / alpha - 1: then all classes are in a set.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))  # 150 * (1 - 0.18) > 123
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def prediction_sets(rows: pd.DataFrame, threshold: float) -> np.ndarray:
    """(rows, classes) bool: the classes whose score is at most the threshold."""
    return 1 - probabilities(rows) <= threshold


def thresholds(calibration: pd.DataFrame, eps: float) -> dict[str, float]:
    """Calibration -> the largest score of a class in a set; infinite where images are too few."""
    found = {}
    for name in CALIBRATIONS:
        images = select(calibration, name, 0.0 if name == CLEAN else eps)
        found[name] = conformal_quantile(label_scores(images), ALPHA)
    return found


def largest_scores(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """(n rows) per image the prediction within ε of the largest score of its label, by path.

    A set that contains the label under it contains the label under every attack, and without one.
    """
    rows = within(rows, eps)
    order = ["path", "certainty", "eps", "attack"]  # no p_: a class may have any name
    rows = rows.assign(certainty=label_probabilities(rows)).sort_values(order)
    return rows.drop_duplicates("path").drop(columns="certainty").reset_index(drop=True)
