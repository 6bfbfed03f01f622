"""Numbers and identifiers as texts, in one style for figures, report and terminal."""

from collections.abc import Mapping
from typing import Any

from stages.core.predictions import CLEAN, SURROGATE, TRANSFER, UNIVERSAL, UNIVERSAL_TRANSFER
from stages.evaluation.selection import WORST

NOT_AVAILABLE = "n/a"
NBSP = "\N{NO-BREAK SPACE}"
MODEL_LABELS = {"clean": "Standard training", "adv": "Adversarial fine-tuning"}
ATTACK_LABELS = {
    CLEAN: "Clean",
    "uniform_noise": "Uniform noise",
    "gaussian_noise": "Gaussian noise",
    "fgsm": "FGSM",
    "bim": "BIM",
    "pgd": "PGD",
    TRANSFER: "Transfer (PGD)",
    SURROGATE: "Surrogate (PGD)",
    UNIVERSAL: "Universal",
    UNIVERSAL_TRANSFER: "Universal (transfer)",
    WORST: "Worst case",
}
CORRUPTION_LABELS = {
    CLEAN: "none",
    "blur": "blur",
    "jpeg": "JPEG",
    "darkness": "darkness",
    "contrast": "low contrast",
    "colour_cast": "color cast",
    "noise": "noise",
    "glare": "glare",
    "spatial": "rotation and shift",
}


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """0.4567 -> ``45.7%``; a signed difference in percentage points, ``+45.7 pp``."""
    if fraction is None:
        return NOT_AVAILABLE
    return f"{100 * fraction:+.1f}{NBSP}pp" if signed else f"{100 * fraction:.1f}%"


def metric(values: Mapping[str, Any], name: str, *, unit: str = "%", signed: bool = False) -> str:
    """A metric with its confidence interval: ``45.7% [36.0, 55.9]``, with no-break spaces; without unit three decimals."""
    if name not in values:
        return NOT_AVAILABLE
    scale, digits, sign = (
        (100, 1, "+" if signed else "") if unit == "%" else (1, 3, "+" if signed else "")
    )
    value, *interval = (
        f"{scale * values[key]:{sign}.{digits}f}"
        for key in (name, f"{name}_low", f"{name}_high")
        if key in values
    )
    suffix = {"%": f"{NBSP}pp" if signed else "%"}.get(unit, "")
    return value + suffix + (f" [{interval[0]},{NBSP}{interval[1]}]" if len(interval) == 2 else "")


def proportion(row: Mapping[str, Any], name: str = "accuracy") -> str:
    """A proportion and its interval from a row of a table with the columns ``low`` and ``high``."""
    return metric({name: row[name], f"{name}_low": row["low"], f"{name}_high": row["high"]}, name)


def p_value(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def attack_label(attack: str, steps: int | None = None) -> str:
    """``pgd`` -> ``PGD-10`` with its steps; the ensemble by its identifier."""
    label = ATTACK_LABELS.get(attack, f"Ensemble ({attack})")
    return f"{label}-{steps}" if steps and attack in ("bim", "pgd") else label


def class_label(name: str) -> str:
    """``Type_1`` -> ``Type 1``."""
    return name.replace("_", " ")


def capitalized(text: str) -> str:
    """``low contrast`` -> ``Low contrast``; ``JPEG`` stays."""
    return text[:1].upper() + text[1:]


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
