"""The tables between attack_eval, which runs a model, and evaluate, which never does: one row per image, attack and eps.

``predictions.csv``: every test image once with attack ``none`` and eps 0 (the clean prediction), and once under each attack
and eps that was run.
``calibration.csv``: in the same form, every validation image clean and under PGD at ``attack.eps``.
``transfer.csv`` (of adv): in the same form, both models (``target``) under adversarial examples of the other one.
``second_norm.csv``: in the same form, under attacks in the other norm, where ``attack.second_eps`` asks for them.
``minimum_eps.csv``, ``corruptions.csv``: minimum perturbation, on some of the images, and common corruptions.
``diagnostics.json``: a list of check results (checks.py). ``ensemble.json``: what the ensemble of attacks consisted of.
``gradients.csv``: where the gradient of the model points. ``universal.png``: a picture of the universal perturbation.
``model.json``: what identifies the model. ``examples/examples.csv``: the examples that are shown, and their PNG files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from typing_extensions import TypedDict  # pydantic demands this one before Python 3.12

from stages.core.checks import CheckResult
from stages.core.files import FileFormatError, read_csv, read_json, write_csv

TRANSFER = "transfer"  # adversarial examples of the other model
UNIVERSAL = "universal"  # one perturbation for all images, of the model itself
UNIVERSAL_TRANSFER = "universal_transfer"  # that of the other model
SURROGATE = "surrogate"  # adversarial examples of a model that was trained independently
CLEAN = "none"  # in place of an attack
CALIBRATION_ATTACKS = (CLEAN, "pgd")  # of calibration.csv
LEAN_ENSEMBLE = (
    "apgd"  # APGD on several losses, then Square; AutoAttack's attacks for K classes are aa-k<K>
)
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
    "ssim",  # structural similarity to the original image; 1 = not perturbed
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


def gradient_file(original: str, model: str) -> str:
    """The PNG of a model's gradient at an example, next to that of the original."""
    return original.replace("original", f"gradient_{model}")


TABLES = {
    # eps: smallest one at which the image was misclassified, 0 = clean; found: 0 = not even at eps, the largest tried
    "minimum_eps": ("path", "label", "eps", "found"),
    # severity 1 to 3; attack: none, pgd (on the corrupted image) or grid (of rotations and shifts); confidence: probability of
    # the predicted class
    "corruptions": (
        "path",
        "label",
        "corruption",
        "severity",
        "attack",
        "prediction",
        "confidence",
    ),
    # central_share: of the squared gradient of the margin, what lies in the central quarter of the area
    "gradients": ("path", "label", "central_share"),
}


class Ensemble(TypedDict):
    """ensemble.json: what the ensemble of attacks consisted of, to be reported with its result."""

    name: str
    attacks: list[str]
    iterations: int
    queries: int  # of Square, for each image
    target_classes: int
    images: int  # that the ensemble had to attack
    square_images: int  # that Square was run on,
    square_remaining: int  # of so many that no other attack had found
    seed: int  # of the noise
    library: str


class ModelDescription(TypedDict):
    """model.json: what identifies the model."""

    arch: str
    image_size: int
    parameters: int
    sha256: str


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
    """The table itself, if it keeps the contract above; else FileFormatError naming ``source`` and the column."""
    classes = classes_of(table)
    if list(table.columns) != [*COLUMNS, *probability_columns(classes)] or len(classes) < 2:
        raise FileFormatError(
            f"{source}: expected the columns {', '.join(COLUMNS)}, then two or more p_<class>, got {', '.join(table.columns)}"
        )
    if table.empty:
        raise FileFormatError(f"{source}: expected at least one row, got none")
    _validate_values(table, classes, source)
    _validate_images(table, source)
    return table


def _validate_values(table: pd.DataFrame, classes: Sequence[str], source: str) -> None:
    """Finite numbers, known classes, probabilities that add up to 1, eps that fits the attack."""
    for column in table.columns:
        if column not in STRING_COLUMNS and not np.isfinite(table[column].to_numpy(float)).all():
            raise FileFormatError(
                f"{source}: {column}: expected finite numbers, got an infinite or missing one"
            )
    for column in ("label", "prediction"):
        unknown = sorted(set(table[column]) - set(classes))
        if unknown:
            raise FileFormatError(
                f"{source}: {column}: expected one of {', '.join(classes)}, got {unknown[0]!r}"
            )
    total = probabilities(table).sum(axis=1)
    if (np.abs(total - 1) > 1e-3).any() or (probabilities(table) < 0).any():
        raise FileFormatError(
            f"{source}: p_<class>: expected probabilities that add up to 1, got a sum of {total.min():g}"
        )
    clean = table["attack"] == CLEAN
    if (table.loc[clean, "eps"] != 0).any() or (table.loc[~clean, "eps"] <= 0).any():
        raise FileFormatError(
            f"{source}: eps: expected 0 for attack {CLEAN} and more than 0 for the others, got otherwise"
        )


def _validate_images(table: pd.DataFrame, source: str) -> None:
    """One row per image, attack and eps, none missing; one label and group per image."""
    double = table.duplicated(["path", "attack", "eps"])
    if double.any():
        raise FileFormatError(
            f"{source}: expected one row per path, attack and eps, got two of {table.loc[double, 'path'].iloc[0]}"
        )
    if not (table["attack"] == CLEAN).any():
        raise FileFormatError(f"{source}: attack: expected the rows of attack {CLEAN}, got none")
    images = table["path"].nunique()
    for (attack, eps), paths in table.groupby(["attack", "eps"])["path"]:
        if len(paths) != images:
            raise FileFormatError(
                f"{source}: {attack} at eps {eps:g}: expected all {images} images, got {len(paths)}"
            )
    if (table.groupby("path")[["label", "group"]].nunique() > 1).any(axis=None):
        raise FileFormatError(f"{source}: expected one label and one group per path, got several")


def write_predictions(table: pd.DataFrame, folder: Path | str, name: str = "predictions") -> Path:
    """Check and write ``<folder>/<name>.csv``, predictions or calibration; numbers to 6 significant digits."""
    return _write(validate_predictions(table), Path(folder) / f"{name}.csv")


def read_predictions(folder: Path | str, name: str = "predictions") -> pd.DataFrame:
    """The checked table in ``<folder>/<name>.csv``. Text columns stay text: a class may be called ``1`` or ``NA``."""
    file = Path(folder) / f"{name}.csv"
    return validate_predictions(read_csv(file, "attack_eval", STRING_COLUMNS), str(file))


def write_transfer(table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/transfer.csv``: columns of predictions.csv, then ``target``, the model that is attacked."""
    return _write(table, Path(folder) / "transfer.csv")


def read_transfer(folder: Path | str, target: str) -> pd.DataFrame:
    """The rows about one model, to be added to its predictions; none where there is no such file."""
    file = Path(folder) / "transfer.csv"
    if not file.exists():
        return pd.DataFrame()
    table = read_csv(file, "attack_eval", (*STRING_COLUMNS, "target"))
    return table[table["target"] == target].drop(columns="target")


def write_table(name: str, table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/<name>.csv``, one of TABLES."""
    return _write(_check_table(name, table, name), Path(folder) / f"{name}.csv")


def read_table(name: str, folder: Path | str) -> pd.DataFrame:
    """The table in ``<folder>/<name>.csv``, one of TABLES."""
    file = Path(folder) / f"{name}.csv"
    text = [
        column
        for column in TABLES[name]
        if column in ("path", "label", "corruption", "attack", "prediction")
    ]
    return _check_table(name, read_csv(file, "attack_eval", text), str(file))


def _check_table(name: str, table: pd.DataFrame, source: str) -> pd.DataFrame:
    if tuple(table.columns) != TABLES[name]:
        raise FileFormatError(
            f"{source}: expected the columns {', '.join(TABLES[name])}, got {', '.join(table.columns)}"
        )
    return table


def read_checks(folder: Path | str) -> list[CheckResult]:
    """The results of the sanity checks in ``<folder>/diagnostics.json``."""
    return read_json(Path(folder) / "diagnostics.json", "attack_eval", list[CheckResult])


def read_ensemble(folder: Path | str) -> Ensemble:
    """The content of ``<folder>/ensemble.json``."""
    return read_json(Path(folder) / "ensemble.json", "attack_eval", Ensemble)


def read_model_description(folder: Path | str) -> ModelDescription:
    """The content of ``<folder>/model.json``."""
    return read_json(Path(folder) / "model.json", "attack_eval", ModelDescription)


def write_examples(table: pd.DataFrame, folder: Path | str) -> Path:
    """Write ``<folder>/examples.csv``; the PNG files that it names lie in the same folder."""
    return _write(_check_examples(table, "examples"), Path(folder) / "examples.csv")


def read_examples(folder: Path | str) -> pd.DataFrame:
    """The table in ``<folder>/examples.csv``; may have no rows (where the model classifies no image correctly)."""
    file = Path(folder) / "examples.csv"
    text = [c for c in EXAMPLE_COLUMNS if c != "eps" and not c.endswith("confidence")]
    return _check_examples(read_csv(file, "attack_eval", text), str(file))


def _check_examples(table: pd.DataFrame, source: str) -> pd.DataFrame:
    if list(table.columns) != list(EXAMPLE_COLUMNS):
        raise FileFormatError(
            f"{source}: expected the columns {', '.join(EXAMPLE_COLUMNS)}, got {', '.join(table.columns)}"
        )
    return table


def _write(table: pd.DataFrame, file: Path) -> Path:
    write_csv(file, table)
    return file
