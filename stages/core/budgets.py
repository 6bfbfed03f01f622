"""Perturbation budgets as texts."""

from fractions import Fraction

NORM_SYMBOLS = {"linf": "L∞", "l2": "L2"}


def format_eps(eps: float, norm: str) -> str:
    """linf: 0.0313725 -> ``8/255``, other values in pixel units, ``0.01``; l2, a norm of the whole perturbation: ``0.5``."""
    levels = Fraction(eps * 255).limit_denominator(8)
    if not eps or norm != "linf" or abs(float(levels) - eps * 255) > 1e-3 * eps * 255:
        return f"{eps:.4g}"
    return f"{float(levels):g}/255"


def format_budget(eps: float, norm: str) -> str:
    """``L∞, ε = 8/255``."""
    return f"{NORM_SYMBOLS[norm]}, ε = {format_eps(eps, norm)}"
