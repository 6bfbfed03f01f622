"""Numbers and names as texts, in one style for figures, report and terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "n/a"
NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
MODEL_LABELS = {"clean": "Standard training", "adv": "Adversarial fine-tuning"}


def number(value: float, form: str) -> str:
    """A number in this format with a typographic minus: (-4.13, ``+.1f``) -> ``−4.1``."""
    return format(value, form).replace("-", MINUS)


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """0.4567 -> ``45.7%``; a signed difference in percentage points, ``+45.7 pp``."""
    if fraction is None:
        return NOT_AVAILABLE
    if signed:
        return f"{number(100 * fraction, '+.1f')}{NBSP}pp"
    return f"{number(100 * fraction, '.1f')}%"


def metric(values: Mapping[str, Any], name: str, *, unit: str = "%", signed: bool = False) -> str:
    """A metric with its interval, ``45.7% [36.0, 55.9]``; without unit three decimals."""
    if name not in values:
        return NOT_AVAILABLE
    scale, digits, sign = 100 if unit else 1, 1 if unit else 3, "+" if signed else ""
    form = f"{sign}.{digits}f"
    suffix = (f"{NBSP}pp" if signed else "%") if unit else ""
    interval = ""
    if f"{name}_low" in values:
        low, high = (number(scale * values[f"{name}_{end}"], form) for end in ("low", "high"))
        interval = f" [{low},{NBSP}{high}]"
    return number(scale * values[name], form) + suffix + interval


def proportion(row: Mapping[str, Any], name: str = "accuracy") -> str:
    """A proportion and its interval from a row of a table with the columns ``low`` and ``high``."""
    return metric({name: row[name], f"{name}_low": row["low"], f"{name}_high": row["high"]}, name)


def p_value(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def class_label(name: str) -> str:
    """``Type_1`` -> ``Type 1``."""
    return name.replace("_", " ")


def capitalized(text: str) -> str:
    """``low contrast`` -> ``Low contrast``; ``JPEG`` stays."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def worst_last(attacks: Sequence[str], worst: str) -> list[str]:
    """Attacks in their order, the worst case behind all others."""
    return [*(name for name in dict.fromkeys(attacks) if name != worst), worst]
