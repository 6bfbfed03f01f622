"""The diagnostics that tables suffice for: were the attacks strong enough, and do their results fit together?

After Carlini et al. (arXiv:1902.06705), AutoAttack's checks (2003.01690) and Pintor et al. (2106.09947). Those that need the
model are in `stages.attacks.sanity_checks`.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stages.core.checks import FAIL, INFO, PASS, WARN, CheckResult, grade
from stages.core.predictions import CLEAN, SURROGATE, TRANSFER, UNIVERSAL_TRANSFER, is_ensemble
from stages.evaluation.metrics import expected_calibration_error
from stages.evaluation.selection import (
    EPS_TOLERANCE,
    attacks_at,
    correct_under,
    eps_values,
    is_correct,
    select_predictions,
    worst_case_predictions,
)

Outcomes = Mapping[str, np.ndarray]  # attack -> (n,) bool, correct under it at the main eps


def run_table_checks(
    model: str,
    table: pd.DataFrame,
    eps: float,
    training: pd.DataFrame | None,
    majority_rate: float,
    ensemble: Mapping[str, Any],
    min_eps_curve: pd.DataFrame,
) -> list[CheckResult]:
    """The checks of one model that its predictions and its training curve suffice for.

    Args:
        model: one of MODELS.
        table: its predictions.csv, with the rows of the transfer attack where there are any.
        eps: main eps.
        training: its training curve.
        majority_rate: accuracy of the majority-class baseline.
        ensemble: its ensemble.json.
        min_eps_curve: its rows in plots/minimum_eps.csv.
    """
    outcomes = {attack: correct_under(table, attack, eps) for attack in attacks_at(table, eps)}
    return [
        _attack_order(outcomes),
        _black_box_only(table, eps, outcomes, ensemble),
        _noise_only(outcomes),
        _eps_monotonicity(table),
        _transfer_gain(outcomes),
        _idle_attack(table, eps),
        _attack_diversity(outcomes, int(table["path"].nunique())),
        *_training_checks(model, training),
        *_prediction_checks(model, table, eps, majority_rate),
        _minimum_eps_agreement(table, min_eps_curve),
    ]


def _ensembles(outcomes: Outcomes) -> list[str]:
    return [attack for attack in outcomes if is_ensemble(attack)]


def _attack_order(outcomes: Outcomes) -> CheckResult:
    """D8: noise, FGSM, PGD, the ensemble: the largest increase of accuracy from one to the next."""
    order = [
        outcomes[attack]
        for attack in ("uniform_noise", "fgsm", "pgd", *_ensembles(outcomes))
        if attack in outcomes
    ]
    increases = [stronger.mean() - weaker.mean() for weaker, stronger in itertools.pairwise(order)]
    return grade(
        "D8", max([0.0, *increases]) if increases else math.nan, len(order[0]), warn=0, fail=0.02
    )


def _black_box_only(
    table: pd.DataFrame, eps: float, outcomes: Outcomes, ensemble: Mapping[str, Any]
) -> CheckResult:
    """D9: Square comes last in the ensemble: what it found, no attack with gradients had. Transfer attacks count likewise.

    The fraction of correctly classified images. Where Square was run on some of the remaining images only, its successes stand
    for all of them, and n is that much smaller.
    """
    names, initially = _ensembles(outcomes), is_correct(select_predictions(table))
    if not names or not initially.any():
        return grade("D9", math.nan, 0, warn=0, fail=0.03)
    rows, correct = select_predictions(table, names[0], eps), outcomes[names[0]]
    by_square = int((~correct & (rows["found_by"] == "square")).sum())
    others = [~outcomes[attack] for attack in (TRANSFER, UNIVERSAL_TRANSFER) if attack in outcomes]
    by_transfer = int((correct & np.any(others, axis=0)).sum()) if others else 0
    remaining, attacked = ensemble["square_remaining"], ensemble["square_images"]
    share = attacked / remaining if remaining else 1.0
    # The surrogate came before the ensemble, which leaves out what it found: all other gradient attacks are compared with.
    white_box = np.all(
        [outcomes[attack] for attack in ("fgsm", "bim", "pgd") if attack in outcomes], axis=0
    )
    by_surrogate = int((white_box & ~outcomes[SURROGATE]).sum()) if SURROGATE in outcomes else 0
    value = (by_square / share + by_transfer + by_surrogate) / initially.sum()
    return grade("D9", value, int(initially.sum() * share), warn=0, fail=0.03)


def _noise_only(outcomes: Outcomes) -> CheckResult:
    """D10: images on which noise succeeds but not PGD."""
    noise = [
        ~outcomes[attack] for attack in ("uniform_noise", "gaussian_noise") if attack in outcomes
    ]
    if not noise or "pgd" not in outcomes:
        return grade("D10", math.nan, 0, warn=0, fail=0.02)
    only = np.any(noise, axis=0) & outcomes["pgd"]
    return grade("D10", only.mean(), len(only), warn=0, fail=0.02)


def _eps_monotonicity(table: pd.DataFrame) -> CheckResult:
    """D11: the largest increase of accuracy under PGD from one eps to the next."""
    curve = [
        correct_under(table, "pgd", eps).mean()
        for eps in eps_values(table)
        if "pgd" in attacks_at(table, eps)
    ]
    n = len(select_predictions(table))
    if len(curve) < 2:
        return grade("D11", math.nan, 0, fail=0)
    return grade(
        "D11", max(larger - smaller for smaller, larger in itertools.pairwise(curve)), n, fail=0
    )


def _transfer_gain(outcomes: Outcomes) -> CheckResult:
    """D17: accuracy under PGD minus accuracy under PGD on another model, the lowest where there are several."""
    transferred = [
        outcomes[attack].mean() for attack in (TRANSFER, SURROGATE) if attack in outcomes
    ]
    if not transferred or "pgd" not in outcomes:
        return grade("D17", math.nan, 0, fail=0)
    return grade("D17", outcomes["pgd"].mean() - min(transferred), len(outcomes["pgd"]), fail=0)


def _idle_attack(table: pd.DataFrame, eps: float) -> CheckResult:
    """D18: of the correctly classified images, the fraction on which PGD does not increase the margin loss."""
    correct = is_correct(select_predictions(table))
    if "pgd" not in attacks_at(table, eps) or not correct.any():
        return grade("D18", math.nan, 0, warn=0, fail=0.02)
    idle = (select_predictions(table, "pgd", eps)["found_by"] == CLEAN).to_numpy()[correct]
    return grade("D18", idle.mean(), len(idle), warn=0, fail=0.02)


def _attack_diversity(outcomes: Outcomes, n: int) -> CheckResult:
    """D19: training takes steps along the gradient's sign; the ensemble adds other losses and random search."""
    others = len(_ensembles(outcomes)) + (TRANSFER in outcomes)
    return CheckResult("D19", PASS if others else WARN, float(others), "0 WARN", n)


def _training_checks(model: str, training: pd.DataFrame | None) -> list[CheckResult]:
    """D20: FGSM minus PGD accuracy in the selected epoch. D21: best minus last robust validation accuracy."""
    if model != "adv" or training is None:
        return []
    n, robust = len(training), training["val_robust_accuracy"]
    gap = (
        training["val_fgsm_accuracy"] - robust
        if "val_fgsm_accuracy" in training
        else pd.Series([math.nan] * n)
    )
    selected = training["chosen"] == 1 if "chosen" in training else pd.Series([True] * n)
    return [
        grade("D20", gap[selected].max(), n, warn=0.15),
        grade("D21", robust.max() - robust.iloc[-1], n, warn=0.02),
    ]


def _prediction_checks(
    model: str, table: pd.DataFrame, eps: float, majority_rate: float
) -> list[CheckResult]:
    """D25: calibration under attack. D26: the most frequent prediction. D27: robust accuracy above the majority class."""
    worst = worst_case_predictions(table, eps)
    most_frequent = worst["prediction"].value_counts(normalize=True).iloc[0]
    above = is_correct(worst).mean() - majority_rate
    # A model that never saw an attack promises nothing: below the majority class is a finding about it, no fault.
    verdict = INFO if model == "clean" else (PASS if above > 0 else FAIL)
    return [
        CheckResult("D25", INFO, expected_calibration_error(worst), "", len(worst)),
        grade("D26", most_frequent, len(worst), warn=0.9),
        CheckResult("D27", verdict, float(above), "<= 0 FAIL", len(worst)),
    ]


def _minimum_eps_agreement(table: pd.DataFrame, curve: pd.DataFrame) -> CheckResult:
    """D28: success rates by minimum perturbation, on some images, and by all attacks on all: largest difference over eps."""
    initially = is_correct(select_predictions(table))
    if not len(curve) or not initially.any():
        return grade("D28", math.nan, 0, warn=0.1)
    differences = []
    for eps in eps_values(table):
        within = curve.loc[curve["eps"] <= eps * (1 + EPS_TOLERANCE), "changed"].max()
        differences.append(
            abs(within - (~is_correct(worst_case_predictions(table, eps)))[initially].mean())
        )
    return grade("D28", max(differences), int(curve["count"].max()), warn=0.1)


def failed_checks(checks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """``adv D27``: what is FAIL in the contents of metrics/diagnostics.json."""
    return [
        f"{model} {id_}"
        for model, results in checks.items()
        for id_, r in results.items()
        if r["verdict"] == FAIL
    ]


def format_checks(checks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """How many are PASS, and a line for each that isn't."""
    lines = []
    for model, results in checks.items():
        passed = sum(result["verdict"] == PASS for result in results.values())
        lines.append(f"diagnostics of {model}: {passed} of {len(results)} PASS")
        for id_, result in results.items():
            if result["verdict"] != PASS:
                value = f" {result['value']:.3g}" if "value" in result else ""
                lines.append(
                    f"  [{result['verdict']}] {id_} {result['name']}:{value} (n = {result['n']})"
                )
    return "\n".join(lines)
