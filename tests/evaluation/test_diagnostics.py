"""The diagnostics that tables suffice for: each fault trips its own, and little data is no fault."""

import numpy as np
import pandas as pd
import pytest
from stages.core.checks import FAIL, INCONCLUSIVE, INFO, PASS, WARN, CheckResult, grade
from stages.evaluation.diagnostics import failed_checks, format_checks, run_table_checks

from tests.helpers.prediction_tables import ENSEMBLE, EPS, make_table, make_training, rows

N = 200  # the rates need 150
# attack -> how many of N images are classified correctly under it
SOUND = {
    "none": 180,
    "uniform_noise": 178,
    "gaussian_noise": 178,
    "fgsm": 120,
    "pgd_half": 140,
    "pgd": 100,
    "ensemble": 98,
}
# Square was run on all images that the other attacks had left.
ALL = ENSEMBLE | {"square_images": 100, "square_remaining": 100}


NO_CURVE = pd.DataFrame({"eps": [], "changed": [], "count": []})


def checks_of(
    table, model="adv", training=None, majority=0.4, ensemble=ALL, curve=NO_CURVE
) -> dict[str, CheckResult]:
    return {
        result.id: result
        for result in run_table_checks(model, table, EPS, training, majority, ensemble, curve)
    }


def logits_correct_for(images: list[int], n: int) -> np.ndarray:
    """Logits (n, 3) whose prediction is class 0 for these images only."""
    logits = np.tile([0.0, 2.0, 0.0], (n, 1))
    logits[images] = [2.0, 0.0, 0.0]
    return logits


def table_with(n: int = N, **correct) -> pd.DataFrame:
    """attack -> which of n images of class 0 are classified correctly: a list, or how many, then the first ones."""
    eps = {"none": 0.0, "pgd_half": EPS / 2}
    parts = []
    for attack, images in correct.items():
        images = list(range(images)) if isinstance(images, int) else images
        name = {"pgd_half": "pgd", "ensemble": "apgd"}.get(attack, attack)
        parts.append(
            rows([0] * n, logits_correct_for(images, n), attack=name, eps=eps.get(attack, EPS))
        )
    return pd.concat(parts, ignore_index=True)


def test_sound_evaluation_passes():
    results = checks_of(table_with(**SOUND))
    assert [id_ for id_, result in results.items() if result.verdict not in (PASS, INFO)] == [
        "D17",
        "D28",
    ]
    assert results["D17"].verdict == INCONCLUSIVE  # no transfer attack
    assert results["D28"].verdict == INCONCLUSIVE  # no minimum perturbation
    assert results["D27"].value == pytest.approx(0.49 - 0.4)


@pytest.mark.parametrize(
    ("check", "verdict", "change"),
    [
        ("D8", FAIL, {"fgsm": 80}),  # one step succeeds on more images than many
        ("D8", WARN, {"fgsm": 98}),  # on one percent more
        ("D10", FAIL, {"uniform_noise": list(range(20, 180))}),  # noise succeeds where PGD doesn't
        ("D11", FAIL, {"pgd_half": 60}),
        ("D17", FAIL, {"transfer": 60}),
        ("D9", FAIL, {"transfer": 60}),
        ("D9", FAIL, {"surrogate": 60}),
        ("D17", FAIL, {"surrogate": 60}),
        ("D17", PASS, {"transfer": 160}),
        ("D27", FAIL, {"pgd": 60, "ensemble": 60}),
        ("D19", WARN, {"ensemble": None}),
        ("D9", INCONCLUSIVE, {"ensemble": None}),
        ("D11", INCONCLUSIVE, {"pgd_half": None}),  # a grid of a single eps
    ],
)
def test_each_fault_trips_its_own_check(check, verdict, change):
    table = table_with(
        **{attack: images for attack, images in (SOUND | change).items() if images is not None}
    )
    assert checks_of(table)[check].verdict == verdict


@pytest.mark.parametrize(("idle", "verdict"), [(0, PASS), (2, WARN), (10, FAIL)])
def test_attack_that_does_not_increase_the_loss_is_found(idle, verdict):
    table = table_with(**SOUND)
    images = table.index[(table["attack"] == "pgd") & np.isclose(table["eps"], EPS)][:idle]
    table.loc[images, "found_by"] = "none"
    assert checks_of(table)["D18"].verdict == verdict


def test_success_of_square_alone_is_gradient_masking():
    table = table_with(**(SOUND | {"ensemble": 82}))
    assert checks_of(table)["D9"].verdict == PASS  # found_by says that gradient attacks found them
    success = (table["attack"] == "apgd") & (table["label"] != table["prediction"])
    rank = table["path"].rank(method="dense")
    table.loc[success & (rank > 82) & (rank <= 100), "found_by"] = "square"
    assert checks_of(table)["D9"].verdict == FAIL
    assert checks_of(table)["D9"].value == pytest.approx(18 / 180)


def test_square_on_some_of_the_remaining_images_stands_for_all_of_them():
    half = ALL | {"square_images": 50}
    table = table_with(**SOUND)
    table.loc[
        (table["attack"] == "apgd") & (table["path"] == table["path"].unique()[98]), "found_by"
    ] = "square"
    result = checks_of(table, ensemble=half)["D9"]
    assert result.value == pytest.approx(2 * 1 / 180)
    assert (result.n, result.verdict) == (90, WARN)
    assert checks_of(table_with(**SOUND), ensemble=half)["D9"].verdict == INCONCLUSIVE, (
        "90 images can't show 3 %"
    )
    nothing_left = ALL | {"square_images": 0, "square_remaining": 0}
    assert checks_of(table_with(**SOUND), ensemble=nothing_left)["D9"].verdict == PASS


def test_constant_model_is_not_above_the_majority_class():
    labels, constant = np.array([0] * 80 + [1] * 60 + [2] * 60), np.tile([2.0, 0.0, 0.0], (N, 1))
    attacks = (("none", 0.0), ("fgsm", EPS), ("pgd", EPS), ("apgd", EPS))
    table = pd.concat(
        [rows(labels, constant, attack=a, eps=e) for a, e in attacks], ignore_index=True
    )
    results = checks_of(table, majority=0.4)
    assert results["D26"].verdict == WARN
    assert results["D27"].verdict == FAIL
    assert checks_of(table, "clean", majority=0.4)["D27"].verdict == INFO


def test_overfitting_is_read_from_the_curve_of_adversarial_training():
    table, curve = table_with(**SOUND), make_training()
    assert "D21" not in checks_of(table, "clean", curve)
    assert (
        checks_of(table, "adv", curve)["D20"].verdict == INCONCLUSIVE
    )  # no FGSM accuracy in the curve
    falling = curve.assign(val_robust_accuracy=[*[0.4] * (len(curve) - 1), 0.3])
    assert checks_of(table, "adv", falling)["D21"].verdict == WARN
    catastrophic = curve.assign(val_fgsm_accuracy=curve["val_robust_accuracy"] + 0.2)
    assert checks_of(table, "adv", catastrophic)["D20"].verdict == WARN


@pytest.mark.parametrize(("within_eps", "verdict"), [(82 / 180, PASS), (0.6, WARN)])
def test_minimum_perturbation_that_contradicts_the_attacks_trips_its_check(within_eps, verdict):
    """Of the 180 images classified correctly, the attacks find 40 within half of eps and 82 within eps."""
    curve = pd.DataFrame(
        {
            "eps": [0, EPS / 3, 0.9 * EPS, 2 * EPS],
            "changed": [0, 40 / 180, within_eps, 1.0],
            "count": 180,
        }
    )
    assert checks_of(table_with(**SOUND), curve=curve)["D28"].verdict == verdict


def test_minimum_perturbation_found_at_the_budget_itself_is_within_it():
    """Its norm is computed in float32."""
    rounded = EPS * (1 + 2e-6)
    curve = pd.DataFrame(
        {
            "eps": [0, EPS / 3, rounded, 2 * EPS],
            "changed": [0, 40 / 180, 82 / 180, 1.0],
            "count": 180,
        }
    )
    assert checks_of(table_with(**SOUND), curve=curve)["D28"].value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 40])
def test_little_data_gives_verdicts_but_no_error(n):
    results = checks_of(make_table("adv", n), "adv", make_training(1))
    assert set(results) == {f"D{i}" for i in (8, 9, 10, 11, 17, 18, 19, 20, 21, 25, 26, 27, 28)}
    text = format_checks({"adv": {id_: result.to_dict() for id_, result in results.items()}})
    assert text.startswith("diagnostics of adv: ")


def test_failures_are_named_with_their_model():
    results = {
        "D2": grade("D2", 1.0, 4, fail=0).to_dict(),
        "D5": grade("D5", 0.0, 4, fail=0).to_dict(),
    }
    assert failed_checks({"clean": results, "adv": {}}) == ["clean D2"]
    assert format_checks({"clean": results}).splitlines() == [
        "diagnostics of clean: 1 of 2 PASS",
        "  [FAIL] D2 Model outputs look like probabilities: 1 (n = 4)",
    ]
