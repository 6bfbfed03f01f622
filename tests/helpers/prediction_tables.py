"""Tables of predictions with plausible numbers, made without a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.core.predictions import CLEAN, PREDICTIONS, is_correct, probability_columns, select

CLASSES = ("Type_1", "Type_2", "Type_3")
EPS = 8 / 255
GRID = (2 / 255, 4 / 255, EPS)
STRENGTH = {
    "uniform_noise": 0.05,
    "gaussian_noise": 0.06,
    "fgsm": 0.75,
    "bim": 0.7,
    "pgd": 1.0,
    "universal": 0.2,
    "apgd": 1.05,
}
# Model -> mean and spread of the clean margin, and what PGD at the main ε takes from it.
MARGINS = {"clean": (1.6, 1.8, 4.7), "adv": (1.9, 1.6, 0.9)}


def rows(
    labels: Sequence[int],
    logits: Any,
    *,
    attack: str = CLEAN,
    eps: float = 0.0,
    classes: Sequence[str] = CLASSES,
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per image from label indices (n,) and logits (n, K)."""
    labels, logits = np.asarray(labels), np.asarray(logits, float)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = odds / odds.sum(axis=1, keepdims=True)
    own = np.eye(logits.shape[1], dtype=bool)[labels]
    paths = [f"{classes[label]}/{i:04d}.jpg" for i, label in enumerate(labels)]
    table = pd.DataFrame({"path": paths, "group": paths if groups is None else groups})
    table = table.assign(label=[classes[label] for label in labels], attack=attack, found_by=attack)
    table = table.assign(norm="linf", eps=eps, seed=0, steps=20 * (attack != CLEAN))
    table["prediction"] = [classes[i] for i in logits.argmax(axis=1)]
    table["confidence"] = p.max(axis=1)
    table["margin"] = logits[own] - np.where(own, -np.inf, logits).max(axis=1)
    table = table.assign(linf=eps, l2=60 * eps, ssim=1 - min(eps, 1))[list(PREDICTIONS.columns)]
    return pd.concat([table, pd.DataFrame(p, columns=probability_columns(classes))], axis=1)


def one_hot(predictions: Any, k: int = len(CLASSES)) -> np.ndarray:
    """Logits (n, k) whose largest one is at the predictions (n,)."""
    return 4.0 * np.eye(k)[np.asarray(predictions)]


def predicted(
    labels: Sequence[int],
    clean: Sequence[int],
    *,
    groups: Sequence[str] | None = None,
    smaller: Sequence[int] | None = None,
    **attacks: Sequence[int],
) -> pd.DataFrame:
    """A whole predictions.csv from label indices and predicted indices, (n,) each.

    Args:
        labels: of the images.
        clean: without attack.
        groups: patients; None: each image is of another one.
        smaller: under PGD at half of ε; None: no such row.
        attacks: at ε; without an entry nothing changes.
    """
    cases = {(CLEAN, 0.0): clean, **{(a, EPS): attacks.get(a, clean) for a in STRENGTH}}
    if smaller is not None:
        cases["pgd", EPS / 2] = smaller
    parts = [
        rows(labels, one_hot(predictions), attack=attack, eps=eps, groups=groups)
        for (attack, eps), predictions in cases.items()
    ]
    return pd.concat(parts, ignore_index=True)


def make_table(
    model: str = "clean",
    n: int = 120,
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.3, 0.45, 0.25),
    classes: Sequence[str] = CLASSES,
    grid: Sequence[float] = GRID,
    per_group: int = 1,
    always: str | None = None,
) -> pd.DataFrame:
    """A whole predictions.csv: every attack at the last ε of the grid, PGD at the others.

    Args:
        model: one of MARGINS.
        n: images.
        seed: of the random numbers.
        fractions: of the classes among the images.
        classes: their names.
        grid: the budgets.
        per_group: images per patient.
        always: every prediction, with and without attack: ``correct``, ``wrong`` or ``first``
            (class); None: it depends on the margin.
    """
    rng, eps = np.random.default_rng(seed), grid[-1]
    mean, spread, loss = MARGINS[model]
    labels = rng.choice(len(classes), n, p=fractions)
    margin, rival = rng.normal(mean, spread, n), rng.integers(1, len(classes), n)
    rival = (labels + rival) % len(classes)
    groups = [f"patient {i // per_group}" for i in range(n)]
    fixed = {"correct": labels, "wrong": rival, "first": np.zeros(n, int)}
    cases = [(CLEAN, 0.0, 0.0), *((attack, eps, value) for attack, value in STRENGTH.items())]
    cases += [("pgd", smaller, smaller / eps) for smaller in grid[:-1]]
    parts = []
    for attack, budget, strength in cases:
        logits = np.full((n, len(classes)), -1.0)
        logits[np.arange(n), rival] = 0.0
        logits[np.arange(n), labels] = margin - loss * strength
        logits = one_hot(fixed[always], len(classes)) if always else logits
        parts.append(
            rows(labels, logits, attack=attack, eps=budget, classes=classes, groups=groups)
        )
    return pd.concat(parts, ignore_index=True)


def misclassified(table: pd.DataFrame, chosen: Any) -> pd.DataFrame:
    """The table with a wrong prediction in the rows where ``chosen`` (rows,) is true."""
    classes = list(dict.fromkeys([*table["label"], *table["prediction"]]))
    other = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    wrong = chosen & is_correct(table)
    return table.assign(
        prediction=table["prediction"].mask(chosen, table["label"].map(other)),
        margin=table["margin"].mask(wrong, -1.0),
    )


def make_minimum_eps(table: pd.DataFrame) -> pd.DataFrame:
    """minimum_eps.csv: ε at which PGD's loss of margin, linear in ε, reaches an image's margin."""
    eps, clean = table["eps"].max(), select(table)
    loss = (clean["margin"] - select(table, "pgd", eps)["margin"]).clip(lower=1e-9)
    smallest = (eps * clean["margin"] / loss).clip(lower=0).where(is_correct(clean), 0.0)
    found = smallest < 8 * eps
    return clean[["path", "label"]].assign(
        eps=smallest.clip(upper=8 * eps), found=found.astype(int)
    )


def make_smoothing(table: pd.DataFrame) -> pd.DataFrame:
    """smoothing.csv: certified up to twice the margin's tenth, broken beyond it."""
    clean = select(table)
    certified = clean["margin"].clip(0, 2) / 10
    parts = []
    for radius in (0.0, 0.125, 0.25, 0.375):
        rows = clean[["path", "label", "prediction"]].assign(radius=radius, votes=200, abstains=0)
        parts.append(rows.assign(certified_radius=certified))
    return pd.concat(parts, ignore_index=True)


def make_calibration(table: pd.DataFrame) -> pd.DataFrame:
    """calibration.csv: other images that the model predicts as those of the table."""
    table = pd.concat([select(table), select(table, "pgd", table["eps"].max())])
    return table.assign(path="val/" + table["path"], group="val " + table["group"])


def make_set_attacks(table: pd.DataFrame) -> pd.DataFrame:
    """set_attacks.csv: one attack predicts as PGD does, the other makes all classes likely."""
    attacked = select(table, "pgd", table["eps"].max())
    likely = [name for name in table if name.startswith("p_")]
    even = attacked.assign(attack="enlarge_set", **dict.fromkeys(likely, 1 / len(likely)))
    return pd.concat([attacked.assign(attack="exclude_label"), even], ignore_index=True)


def make_corruptions(table: pd.DataFrame) -> pd.DataFrame:
    """corruptions.csv: predictions without attack are the clean ones, the others those of PGD."""
    clean, attacked = select(table), select(table, "pgd", table["eps"].max())
    cases = [
        clean.assign(corruption=name, severity=k) for name in ("blur", "jpeg") for k in (1, 2, 3)
    ]
    cases += [attacked.assign(corruption=name, severity=2) for name in ("blur", "jpeg")]
    cases.append(clean.assign(corruption="spatial", severity=1, attack="grid"))
    return pd.concat(cases, ignore_index=True)


def make_history(epochs: int = 6) -> pd.DataFrame:
    """A training curve; the last epoch is the best and the selected one."""
    t = np.arange(1, epochs + 1) / epochs
    curve = pd.DataFrame({"epoch": np.arange(1, epochs + 1), "lr": 0.05 * (1 - t)})
    curve = curve.assign(train_loss=1.1 - 0.8 * t, val_loss=1.1 - 0.4 * t, val_robust_loss=1.2 - t)
    curve = curve.assign(train_accuracy=0.9 * t, val_clean_accuracy=0.8 * t)
    curve = curve.assign(val_robust_accuracy=0.5 * t, val_fgsm_accuracy=0.5 * t + 0.05)
    return curve.assign(chosen=(t == 1).astype(int))
