"""Can the attacks be trusted? Those of the diagnostics D1 to D27 that need only tables; those that need a model: probes.py.

After Carlini et al. (arXiv:1902.06705), AutoAttack's checks (2003.01690) and Pintor et al. (2106.09947).
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stages.core.checks import FAIL, INFO, PASS, WARN, CheckResult, judge
from stages.evaluation import metrics as m


def run_table_checks(
    model: str, table: pd.DataFrame, eps: float, training: pd.DataFrame | None, majority_rate: float
) -> list[CheckResult]:
    """The verdicts about one model that its predictions and its training curve suffice for.

    table: its predictions.csv, with the rows of ``transfer`` where there are any.
    """
    images = m.answers(table)
    clean = m.right(images)
    broken = {
        attack: m.correct_under_attack(table, attack, eps) for attack in m.attacks_at(table, eps)
    }  # (still right, was run)
    success = {attack: ~hits & among for attack, (hits, among) in broken.items()}
    gradient = [attack for attack in ("fgsm", "bim", "pgd") if attack in success]
    return [
        _ladder(broken),
        _black_box(table, eps, success, broken),
        _noise(success, len(images)),
        _monotone(table),
        _transfer(broken),
        judge("D18", max([broken[a][0].mean() - clean.mean() for a in gradient], default=math.nan), len(images), fail=0),
        _independence(table, eps),
        *_training(model, training),
        *_answers(model, table, eps, majority_rate),
    ]


def _ladder(broken: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> CheckResult:
    """noise, FGSM, PGD, the ensemble: the largest step back in success, on the images that both rungs were run on."""
    ensemble = [attack for attack in broken if attack.startswith("aa-k")]
    rungs = [attack for attack in ("uniform_noise", "fgsm", "pgd", *ensemble) if attack in broken]
    worst, images, n = 0.0, 0, 0
    for weak, strong in itertools.pairwise(rungs):
        among = broken[weak][1] & broken[strong][1]
        back = int(broken[strong][0][among].sum()) - int(broken[weak][0][among].sum())
        if back > images:
            worst, images = back / among.sum(), back
        n = max(n, int(among.sum()))
    return judge("D8", worst if len(rungs) > 1 else math.nan, n, fail=0.01, images=images)


def _black_box(
    table: pd.DataFrame,
    eps: float,
    success: Mapping[str, np.ndarray],
    broken: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> CheckResult:
    """Square comes last in the ensemble: what it found, nothing with gradients had. Transfer counts likewise."""
    ensemble = [attack for attack in broken if attack.startswith("aa-k")]
    if not ensemble:
        return judge("D9", math.nan, 0, warn=0.002, fail=0.02)
    rows = m.answers(table, ensemble[0], eps)
    among = broken[ensemble[0]][1]
    found = np.zeros(len(among), bool)
    found[among] = ~m.right(rows) & (rows["found_by"] == "square").to_numpy()
    if "transfer" in success:
        found |= success["transfer"] & among & broken[ensemble[0]][0]
    return judge("D9", found.sum() / among.sum(), int(among.sum()), warn=0.002, fail=0.02)


def _noise(success: Mapping[str, np.ndarray], n: int) -> CheckResult:
    noise = [success[attack] for attack in ("uniform_noise", "gaussian_noise") if attack in success]
    if not noise or "pgd" not in success:
        return judge("D10", math.nan, 0, fail=0.005)
    return judge("D10", (np.any(noise, axis=0) & ~success["pgd"]).mean(), n, fail=0.005)


def _monotone(table: pd.DataFrame) -> CheckResult:
    curve = [m.correct_under_attack(table, "pgd", eps)[0] for eps in m.budgets(table) if "pgd" in m.attacks_at(table, eps)]
    if len(curve) < 2:
        return judge("D11", math.nan, 0, fail=0, images=0)
    back = max(int(b.sum()) - int(a.sum()) for a, b in itertools.pairwise(curve))
    return judge("D11", back / len(curve[0]), len(curve[0]), fail=0, images=back)


def _transfer(broken: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> CheckResult:
    if "transfer" not in broken or "pgd" not in broken:
        return judge("D17", math.nan, 0, fail=0)
    among = broken["transfer"][1]
    more = broken["pgd"][0][among].mean() - broken["transfer"][0][among].mean()
    return judge("D17", more, int(among.sum()), fail=0)


def _independence(table: pd.DataFrame, eps: float) -> CheckResult:
    """Training takes steps along the gradient's sign; the ensemble adds minimum-norm steps (FAB-T) and random search."""
    others = sum(attack.startswith("aa-k") or attack == "transfer" for attack in m.attacks_at(table, eps))
    return CheckResult("D19", PASS if others else WARN, float(others), "0 WARN", int(table["path"].nunique()))


def _training(model: str, training: pd.DataFrame | None) -> list[CheckResult]:
    if model != "adv" or training is None:
        return []
    n = len(training)
    robust = training["val_robust_accuracy"]
    gap = training["val_fgsm_accuracy"] - robust if "val_fgsm_accuracy" in training else pd.Series([math.nan])
    chosen = training["chosen"] == 1 if "chosen" in training else pd.Series([True] * n)
    value = gap[chosen].max() if "val_fgsm_accuracy" in training else math.nan
    return [judge("D20", value, n, warn=0.15), judge("D21", robust.max() - robust.iloc[-1], n, warn=0.02)]


def _answers(model: str, table: pd.DataFrame, eps: float, majority_rate: float) -> list[CheckResult]:
    worst = m.worst_case_predictions(table, eps)
    commonest = worst["prediction"].value_counts(normalize=True).iloc[0]
    above = m.right(worst).mean() - majority_rate
    # A model that never met an attack promises nothing: below the constant answer is a finding about it, no fault.
    beaten = INFO if model == "clean" else (PASS if above > 0 else FAIL)
    return [
        CheckResult("D25", INFO, m.expected_calibration_error(worst), "", len(worst)),
        judge("D26", commonest, len(worst), warn=0.9),
        CheckResult("D27", beaten, float(above), "<= 0 FAIL", len(worst)),
    ]


def failed(findings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """``adv D27``: what is FAIL in the contents of metrics/diagnostics.json."""
    return [f"{model} {id}" for model, found in findings.items() for id, one in found.items() if one["verdict"] == FAIL]


def listed(findings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A line for every verdict that isn't PASS, and how many are."""
    lines = []
    for model, found in findings.items():
        passed = sum(one["verdict"] == PASS for one in found.values())
        lines.append(f"diagnostics of {model}: {passed} of {len(found)} PASS")
        for id, one in found.items():
            if one["verdict"] != PASS:
                value = f" {one['value']:.3g}" if "value" in one else ""
                lines.append(f"  [{one['verdict']}] {id} {one['name']}:{value} (n = {one['n']})")
    return "\n".join(lines)
