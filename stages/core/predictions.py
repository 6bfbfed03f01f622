"""The tables between attack_eval, which runs a model, and evaluate, which never does: one row per image, attack and eps.

``predictions.csv``: every test image once with attack ``none`` and eps 0 (the clean prediction), and once under each attack
and eps that was run.
``transfer.csv`` (of adv): in the same form, both models (``target``) under adversarial examples of the other one.
``minimum_eps.csv``, ``corruptions.csv``: minimum perturbation, on some of the images, and common corruptions.
``diagnostics.json``: a list of check results (checks.py). ``ensemble.json``: what the ensemble of attacks consisted of.
``model.json``: what identifies the model. ``examples/examples.csv``: the examples that are shown, and their PNG files.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.checks import CheckResult
from stages.core.errors import InputError
from stages.core.files import write_csv

TRANSFER = "transfer"  # adversarial examples of the other model
CLEAN = "none"  # in place of an attack
LEAN_ENSEMBLE = "apgd"  # APGD on several losses, then Square; AutoAttack's attacks for K classes are aa-k<K>
STRING_COLUMNS = ("path", "group", "label", "attack", "found_by", "prediction")
COLUMNS = (
    "path",  # of the image, relative to the source folder
    "group",  # patient or set of near-duplicates
    "label",  # class name
    "attack",  # none | uniform_noise | gaussian_noise | fgsm | bim | pgd | aa-k3 | ...
    "found_by",  # the attack that this adversarial example is of: an attack keeps what a weaker one found before it
    "eps",  # pixel units in [0, 1]
    "seed",
    "steps",  # of the attack; 0 for none
    "prediction",  # class name
    "confidence",  # probability of the predicted class
    "margin",  # logit margin: logit of the label minus the largest other one; negative = misclassified
    "linf",  # L∞ norm of the perturbation
    "l2",  # L2 norm of the perturbation
)  # then one column p_<class> per class, in the order of the classes

EXAMPLE_COLUMNS = (
    "path",
    "attack",
    "eps",
    "label",
    "original_prediction",
    "original_confidence",
    "adversarial_prediction",
    "adversarial_confidence",
    "original",  # file name of a PNG in the same folder, uint8
    "adversarial",
)

TABLES = {
    # eps: smallest one at which the image was misclassified, 0 = clean; found: 0 = not even at eps, the largest tried
    "minimum_eps": ("path", "label", "eps", "found"),
    # severity 1 to 3; confidence: probability of the predicted class
    "corruptions": ("path", "label", "corruption", "severity", "prediction", "confidence"),
}


class PredictionsError(InputError):
    """A table of predictions is missing, incomplete or contradicts itself; the message names file and column."""


def probability_columns(classes: Sequence[str]) -> list[str]:
    """The names of the probability columns, in the order of the classes."""
    return [f"p_{name}" for name in classes]


def is_ensemble(attack: str) -> bool:
    """Whether the rows of this attack hold what an ensemble of attacks found."""
    return attack == LEAN_ENSEMBLE or attack.startswith("aa-k")


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The class names, in the order of the model's outputs."""
    return tuple(name.removeprefix("p_") for name in table.columns if name.startswith("p_"))


def probabilities(table: pd.DataFrame) -> np.ndarray:
    """(rows, classes) predicted probabilities."""
    return table[probability_columns(classes_of(table))].to_numpy(float)


def validate_predictions(table: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """The table itself, if it keeps the contract above; else PredictionsError naming ``source`` and the column."""
    classes = classes_of(table)
    if list(table.columns) != [*COLUMNS, *probability_columns(classes)] or len(classes) < 2:
        raise PredictionsError(
            f"{source}: expected the columns {', '.join(COLUMNS)}, then two or more p_<class>, got {', '.join(table.columns)}"
        )
    if table.empty:
        raise PredictionsError(f"{source}: expected at least one row, got none")
    _validate_values(table, classes, source)
    _validate_images(table, source)
    return table


def _validate_values(table: pd.DataFrame, classes: Sequence[str], source: str) -> None:
    """Finite numbers, known classes, probabilities that add up to 1, eps that fits the attack."""
    for column in table.columns:
        if column not in STRING_COLUMNS and not np.isfinite(table[column].to_numpy(float)).all():
            raise PredictionsError(f"{source}: {column}: expected finite numbers, got an infinite or missing one")
    for column in ("label", "prediction"):
        unknown = sorted(set(table[column]) - set(classes))
        if unknown:
            raise PredictionsError(f"{source}: {column}: expected one of {', '.join(classes)}, got {unknown[0]!r}")
    total = probabilities(table).sum(axis=1)
    if (np.abs(total - 1) > 1e-3).any() or (probabilities(table) < 0).any():
        raise PredictionsError(f"{source}: p_<class>: expected probabilities that add up to 1, got a sum of {total.min():g}")
    clean = table["attack"] == CLEAN
    if (table.loc[clean, "eps"] != 0).any() or (table.loc[~clean, "eps"] <= 0).any():
        raise PredictionsError(f"{source}: eps: expected 0 for attack {CLEAN} and more than 0 for the others, got otherwise")


def _validate_images(table: pd.DataFrame, source: str) -> None:
    """One row per image, attack and eps, none missing; one label and group per image."""
    double = table.duplicated(["path", "attack", "eps"])
    if double.any():
        raise PredictionsError(
            f"{source}: expected one row per path, attack and eps, got two of {table.loc[double, 'path'].iloc[0]}"
        )
    if not (table["attack"] == CLEAN).any():
        raise PredictionsError(f"{source}: attack: expected the rows of attack {CLEAN}, got none")
    images = table["path"].nunique()
    for (attack, eps), paths in table.groupby(["attack", "eps"])["path"]:
        if len(paths) != images:
            raise PredictionsError(f"{source}: {attack} at eps {eps:g}: expected all {images} images, got {len(paths)}")
    if (table.groupby("path")[["label", "group"]].nunique() > 1).any(axis=None):
        raise PredictionsError(f"{source}: expected one label and one group per path, got several")


def write_predictions(table: pd.DataFrame, folder: Path | str) -> Path:
    """Check and write ``<folder>/predictions.csv``; numbers to 6 significant digits."""
    return _write(validate_predictions(table), Path(folder) / "predictions.csv")


def read_predictions(folder: Path | str) -> pd.DataFrame:
    """The checked table in ``<folder>/predictions.csv``. Text columns stay text: a class may be called ``1`` or ``NA``."""
    file = Path(folder) / "predictions.csv"
    return validate_predictions(_read(file, STRING_COLUMNS), str(file))


def write_transfer(table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/transfer.csv``: columns of predictions.csv, then ``target``, the model that is attacked."""
    return _write(table, Path(folder) / "transfer.csv")


def read_transfer(folder: Path | str, target: str) -> pd.DataFrame:
    """The rows about one model, to be added to its predictions; none where there is no such file."""
    file = Path(folder) / "transfer.csv"
    if not file.exists():
        return pd.DataFrame()
    table = _read(file, (*STRING_COLUMNS, "target"))
    return table[table["target"] == target].drop(columns="target")


def write_table(name: str, table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/<name>.csv``, one of TABLES."""
    return _write(_check_table(name, table, name), Path(folder) / f"{name}.csv")


def read_table(name: str, folder: Path | str) -> pd.DataFrame:
    """The table in ``<folder>/<name>.csv``, one of TABLES."""
    file = Path(folder) / f"{name}.csv"
    text = [column for column in TABLES[name] if column in ("path", "label", "corruption", "prediction")]
    return _check_table(name, _read(file, text), str(file))


def _check_table(name: str, table: pd.DataFrame, source: str) -> pd.DataFrame:
    if tuple(table.columns) != TABLES[name]:
        raise PredictionsError(f"{source}: expected the columns {', '.join(TABLES[name])}, got {', '.join(table.columns)}")
    return table


def read_checks(folder: Path | str) -> list[CheckResult]:
    """The results of the sanity checks in ``<folder>/diagnostics.json``."""
    return [CheckResult(**result) for result in read_json(Path(folder) / "diagnostics.json")]


def read_json(file: Path) -> Any:
    """The content of a JSON file written by attack_eval."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PredictionsError(f"{file}: expected a file written by attack_eval, got none") from None
    except ValueError as error:
        raise PredictionsError(f"{file}: expected JSON written by attack_eval, got an error: {error}") from None


def write_examples(table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/examples.csv``; the PNG files that it names lie in the same folder."""
    return _write(_check_examples(table, "examples"), Path(folder) / "examples.csv")


def read_examples(folder: Path | str) -> pd.DataFrame:
    """The table in ``<folder>/examples.csv``; may have no rows (where the model classifies no image correctly)."""
    file = Path(folder) / "examples.csv"
    text = [c for c in EXAMPLE_COLUMNS if c != "eps" and not c.endswith("confidence")]
    return _check_examples(_read(file, text), str(file))


def _check_examples(table: pd.DataFrame, source: str) -> pd.DataFrame:
    if list(table.columns) != list(EXAMPLE_COLUMNS):
        raise PredictionsError(f"{source}: expected the columns {', '.join(EXAMPLE_COLUMNS)}, got {', '.join(table.columns)}")
    return table


def _write(table: pd.DataFrame, file: Path) -> Path:
    write_csv(file, table)
    return file


def _read(file: Path, text: Sequence[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=dict.fromkeys(text, str), keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise PredictionsError(f"{file}: expected a table written by attack_eval, got no file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
        raise PredictionsError(f"{file}: expected a table written by attack_eval, got an error: {error}") from None
