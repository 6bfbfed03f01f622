"""Tables of predictions: one row per image, attack and budget, and how rows are selected from them.

Every image has a row for attack ``none`` at ε 0, the clean prediction, and one under each attack
and ε that was run. What is said of robustness follows from such rows, here or in the report, which
never runs a model.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.core.files import FileFormatError
from stages.core.tables import PROBABILITY, Table, check_columns

CLEAN = "none"  # in place of an attack
WORST = "worst"  # not an attack: per image the most harmful of all that were run
EPS_TOLERANCE = 1e-4  # relative; tables hold ε to 6 digits
PREDICTIONS = Table(
    "predictions",
    {
        "path": (str, "image, relative to the source folder"),
        "group": (str, "patient, else what shows the same scene"),
        "label": (str, "class"),
        "attack": (str, "none, or a name of attacks.csv"),
        "found_by": (str, "the attack that this adversarial example is of"),
        "norm": (str, "of the budget: linf or l2"),
        "eps": (float, "budget, pixel values in [0, 1]"),
        "seed": (int, "of the noise"),
        "steps": (int, "gradient steps of the attack"),
        "prediction": (str, "predicted class"),
        "confidence": (float, "probability of the predicted class"),
        "margin": (float, "logit of the label minus the largest other one"),
        "linf": (float, "largest change of a pixel value"),
        "l2": (float, "Euclidean norm of the perturbation"),
        "ssim": (float, "structural similarity to the original image"),
    },
    probabilities=True,
)


def predictions_like(name: str, **further: tuple[type, str]) -> Table:
    """A table of the same form; further columns come before the probabilities."""
    return Table(name, {**PREDICTIONS.columns, **further}, probabilities=True)


def classes_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """The class names, in the order of the model's outputs."""
    columns = [name for name in rows.columns if name.startswith(PROBABILITY)]
    return tuple(name.removeprefix(PROBABILITY) for name in columns)


def probability_columns(classes: Sequence[str]) -> list[str]:
    """The names of the probability columns, in the order of the classes."""
    return [PROBABILITY + name for name in classes]


def probabilities(rows: pd.DataFrame) -> np.ndarray:
    """(rows, classes) predicted probabilities."""
    return rows[probability_columns(classes_of(rows))].to_numpy(float)


def label_probabilities(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) the probability predicted for the label."""
    columns = pd.Index(classes_of(rows)).get_indexer(rows["label"])
    return probabilities(rows)[np.arange(len(rows)), columns]


def is_correct(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) bool: the prediction is the label."""
    return (rows["label"] == rows["prediction"]).to_numpy()


def select(rows: pd.DataFrame, attack: str = CLEAN, eps: float = 0.0) -> pd.DataFrame:
    """(n rows) the predictions under one attack at one ε, one row per image, sorted by path."""
    at_eps = np.isclose(rows["eps"], eps, rtol=EPS_TOLERANCE, atol=0)
    return rows[(rows["attack"] == attack) & at_eps].sort_values("path", ignore_index=True)


def correct_under(rows: pd.DataFrame, attack: str, eps: float) -> np.ndarray:
    """(n,) bool: which images are classified correctly under the attack, sorted by path."""
    return is_correct(select(rows, attack, eps))


def within(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The rows of at most this ε: what is within 2/255 is within 4/255, as the clean images are."""
    return rows[rows["eps"] <= eps * (1 + EPS_TOLERANCE)]


def worst_case(rows: pd.DataFrame) -> pd.DataFrame:
    """(n rows) per image the most harmful prediction, sorted by path.

    A wrong one if there is any, then the lowest margin; the smallest ε and the first name of an
    attack decide between equal ones.
    """
    rows = rows.assign(correct=is_correct(rows))
    rows = rows.sort_values(["path", "correct", "margin", "eps", "attack"])
    return rows.drop_duplicates("path").drop(columns="correct").reset_index(drop=True)


def eps_values(rows: pd.DataFrame) -> list[float]:
    """Every ε that some attack was run at, ascending, without 0."""
    return sorted(set(rows.loc[rows["attack"] != CLEAN, "eps"]))


def attacks_at(rows: pd.DataFrame, eps: float) -> list[str]:
    """The attacks run at an ε, in the order of the table."""
    at_eps = np.isclose(rows["eps"], eps, rtol=EPS_TOLERANCE, atol=0)
    return list(dict.fromkeys(rows.loc[at_eps, "attack"]))


def validate(rows: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """The rows themselves. Raises FileFormatError, naming ``source``, for an impossible table."""
    check_columns(rows, list(PREDICTIONS.all_columns(rows)), source)
    classes = classes_of(rows)
    if len(classes) < 2:
        raise FileFormatError(f"{source}: expected two or more p_<class>, got {len(classes)}")
    if rows.empty:
        raise FileFormatError(f"{source}: expected at least one row, got none")
    _validate_values(rows, classes, source)
    _validate_images(rows, source)
    return rows


def _validate_values(rows: pd.DataFrame, classes: Sequence[str], source: str) -> None:
    """Finite numbers, known classes, probabilities that add up to 1, ε that fits the attack."""
    for column, (kind, _) in PREDICTIONS.all_columns(rows).items():
        if kind is not str and not np.isfinite(rows[column].to_numpy(float)).all():
            raise FileFormatError(f"{source}: {column}: expected finite numbers, got others")
    for column in ("label", "prediction"):
        if unknown := sorted(set(rows[column]) - set(classes)):
            raise FileFormatError(
                f"{source}: {column}: expected one of {', '.join(classes)}, got {unknown[0]!r}"
            )
    total = probabilities(rows).sum(axis=1)
    if (np.abs(total - 1) > 1e-3).any() or (probabilities(rows) < 0).any():
        raise FileFormatError(
            f"{source}: p_<class>: expected probabilities that add up to 1, "
            f"got a sum of {total.min():g}"
        )
    clean = rows["attack"] == CLEAN
    if (rows.loc[clean, "eps"] != 0).any() or (rows.loc[~clean, "eps"] <= 0).any():
        raise FileFormatError(
            f"{source}: eps: expected 0 for attack {CLEAN} and more than 0 for the others, "
            "got otherwise"
        )


def _validate_images(rows: pd.DataFrame, source: str) -> None:
    """One row per image, attack and ε, none missing; one label and group per image."""
    double = rows.duplicated(["path", "attack", "eps"])
    if double.any():
        raise FileFormatError(
            f"{source}: expected one row per path, attack and eps, "
            f"got two of {rows.loc[double, 'path'].iloc[0]}"
        )
    if not (rows["attack"] == CLEAN).any():
        raise FileFormatError(f"{source}: attack: expected rows of attack {CLEAN}, got none")
    images = rows["path"].nunique()
    for (attack, eps), paths in rows.groupby(["attack", "eps"])["path"]:
        if len(paths) != images:
            raise FileFormatError(
                f"{source}: {attack} at eps {eps:g}: expected all {images} images, got {len(paths)}"
            )
    if (rows.groupby("path")[["label", "group"]].nunique() > 1).any(axis=None):
        raise FileFormatError(f"{source}: expected one label and one group per path, got several")
