"""The diagnostics that tables suffice for: each fault trips its own, and little data is no fault."""

import numpy as np
import pandas as pd
import pytest

from stages.core.checks import FAIL, INCONCLUSIVE, INFO, PASS, WARN, CheckResult, grade
from stages.evaluation.diagnostics import failed_checks, format_checks, run_table_checks
from tests.helpers.prediction_tables import EPS, make_table, make_training, rows

# attack -> images of 100 that are classified correctly under it
SOUND = {"none": 90, "uniform_noise": 89, "gaussian_noise": 89, "fgsm": 60, "pgd_half": 70, "pgd": 50, "aa": 49}


def checks_of(table, model="adv", training=None, majority=0.4) -> dict[str, CheckResult]:
    return {result.id: result for result in run_table_checks(model, table, EPS, training, majority)}


def logits_correct_for(images: list[int], n: int = 100) -> np.ndarray:
    """Logits (n, 3) whose prediction is class 0 for these images only."""
    logits = np.tile([0.0, 2.0, 0.0], (n, 1))
    logits[images] = [2.0, 0.0, 0.0]
    return logits


def table_with(n: int = 100, **correct) -> pd.DataFrame:
    """attack -> which of n images of class 0 are classified correctly: a list, or how many, then the first ones."""
    eps = {"none": 0.0, "pgd_half": EPS / 2}
    parts = []
    for attack, images in correct.items():
        images = list(range(images)) if isinstance(images, int) else images
        name = {"pgd_half": "pgd", "aa": "aa-k3"}.get(attack, attack)
        parts.append(rows([0] * n, logits_correct_for(images, n), attack=name, eps=eps.get(attack, EPS)))
    return pd.concat(parts, ignore_index=True)


def test_sound_evaluation_passes():
    results = checks_of(table_with(**SOUND))
    assert [id_ for id_, result in results.items() if result.verdict not in (PASS, INFO)] == ["D17"]
    assert results["D17"].verdict == INCONCLUSIVE  # no transfer attack
    assert results["D27"].value == pytest.approx(0.49 - 0.4)


@pytest.mark.parametrize(
    ("check", "verdict", "change"),
    [
        ("D8", FAIL, {"fgsm": 40}),  # one step succeeds on more images than many
        ("D8", PASS, {"fgsm": 49}),  # on one image more
        ("D10", FAIL, {"uniform_noise": list(range(10, 90))}),  # noise succeeds where PGD doesn't
        ("D11", FAIL, {"pgd_half": 30}),
        ("D18", FAIL, {"fgsm": 95}),
        ("D17", FAIL, {"transfer": 30}),
        ("D9", FAIL, {"transfer": 30}),
        ("D17", PASS, {"transfer": 80}),
        ("D27", FAIL, {"pgd": 30, "aa": 30}),
        ("D19", WARN, {"aa": None}),
        ("D9", INCONCLUSIVE, {"aa": None}),
        ("D11", INCONCLUSIVE, {"pgd_half": None}),  # a grid of a single eps
    ],
)
def test_each_fault_trips_its_own_check(check, verdict, change):
    table = table_with(**{attack: images for attack, images in (SOUND | change).items() if images is not None})
    assert checks_of(table)[check].verdict == verdict


def test_success_of_square_alone_is_gradient_masking():
    table = table_with(**(SOUND | {"aa": 40}))
    assert checks_of(table)["D9"].verdict == PASS  # found_by says that gradient attacks found them
    success = (table["attack"] == "aa-k3") & (table["label"] != table["prediction"])
    rank = table["path"].rank(method="dense")
    table.loc[success & (rank > 40) & (rank <= 50), "found_by"] = "square"
    assert checks_of(table)["D9"].verdict == FAIL
    assert checks_of(table)["D9"].value == pytest.approx(0.1)


def test_constant_model_is_not_above_the_majority_class():
    labels, constant = np.array([0] * 40 + [1] * 30 + [2] * 30), np.tile([2.0, 0.0, 0.0], (100, 1))
    attacks = (("none", 0.0), ("fgsm", EPS), ("pgd", EPS), ("aa-k3", EPS))
    table = pd.concat([rows(labels, constant, attack=a, eps=e) for a, e in attacks], ignore_index=True)
    results = checks_of(table, majority=0.4)
    assert results["D26"].verdict == WARN
    assert results["D27"].verdict == FAIL
    assert checks_of(table, "clean", majority=0.4)["D27"].verdict == INFO


def test_overfitting_is_read_from_the_curve_of_adversarial_training():
    table, curve = table_with(**SOUND), make_training()
    assert "D21" not in checks_of(table, "clean", curve)
    assert checks_of(table, "adv", curve)["D20"].verdict == INCONCLUSIVE  # no FGSM accuracy in the curve
    falling = curve.assign(val_robust_accuracy=[*[0.4] * (len(curve) - 1), 0.3])
    assert checks_of(table, "adv", falling)["D21"].verdict == WARN
    catastrophic = curve.assign(val_fgsm_accuracy=curve["val_robust_accuracy"] + 0.2)
    assert checks_of(table, "adv", catastrophic)["D20"].verdict == WARN


@pytest.mark.parametrize("n", [1, 2, 40])
def test_little_data_gives_verdicts_but_no_error(n):
    results = checks_of(make_table("adv", n), "adv", make_training(1))
    assert set(results) == {f"D{i}" for i in (8, 9, 10, 11, 17, 18, 19, 20, 21, 25, 26, 27)}
    text = format_checks({"adv": {id_: result.to_dict() for id_, result in results.items()}})
    assert text.startswith("diagnostics of adv: ")


def test_failures_are_named_with_their_model():
    results = {"D2": grade("D2", 1.0, 4, fail=0).to_dict(), "D5": grade("D5", 0.0, 4, fail=0).to_dict()}
    assert failed_checks({"clean": results, "adv": {}}) == ["clean D2"]
    assert format_checks({"clean": results}).splitlines() == [
        "diagnostics of clean: 1 of 2 PASS",
        "  [FAIL] D2 Model outputs look like probabilities: 1 (n = 4)",
    ]
