"""The verdicts that need tables only: each defect trips its own, and little data is no defect."""

import numpy as np
import pandas as pd
import pytest

from stages.core.checks import FAIL, INFO, NAMES, PASS, UNKNOWN, WARN, CheckResult, judge
from stages.evaluation.diagnostics import failed, listed, run_table_checks
from tests.helpers.prediction_tables import EPS, make_table, make_training, rows


def verdicts(table, model="adv", training=None, majority=0.4) -> dict[str, CheckResult]:
    return {found.id: found for found in run_table_checks(model, table, EPS, training, majority)}


def right_and_wrong(right: list[int], n: int = 100) -> np.ndarray:
    """Logits (n, 3) that are right (class 0) on these images."""
    logits = np.tile([0.0, 2.0, 0.0], (n, 1))
    logits[right] = [2.0, 0.0, 0.0]
    return logits


def table_of(n: int = 100, **still_right) -> pd.DataFrame:
    """attack -> how many of n images are still right, the first ones."""
    names = {"none": 0.0, "pgd_half": EPS / 2}
    parts = []
    for attack, count in still_right.items():
        images = list(range(count)) if isinstance(count, int) else count
        name = {"pgd_half": "pgd", "aa": "aa-k3"}.get(attack, attack)
        parts.append(rows([0] * n, right_and_wrong(images, n), attack=name, eps=names.get(attack, EPS)))
    return pd.concat(parts, ignore_index=True)


SOUND = {"none": 90, "uniform_noise": 89, "gaussian_noise": 89, "fgsm": 60, "pgd_half": 70, "pgd": 50, "aa": 49}


def test_thresholds():
    assert judge("D5", 0.005, 10, warn=0.01, fail=0.1).verdict == PASS
    assert judge("D5", 0.05, 10, warn=0.01, fail=0.1).verdict == WARN
    assert judge("D5", 0.5, 10, warn=0.01, fail=0.1).verdict == FAIL
    assert judge("D5", 0.5, 0, warn=0.01).verdict == UNKNOWN
    assert judge("D5", float("nan"), 9, warn=0.01).verdict == UNKNOWN
    assert judge("D8", 0.5, 2, fail=0.01, images=1).verdict == PASS  # one picture proves nothing
    assert "value" not in judge("D5", float("nan"), 9, warn=0.01).record()


def test_a_sound_table_passes():
    found = verdicts(table_of(**SOUND))
    assert [id for id, one in found.items() if one.verdict not in (PASS, INFO)] == ["D17"]
    assert found["D17"].verdict == UNKNOWN  # no transfer
    assert found["D27"].value == pytest.approx(0.49 - 0.4)


@pytest.mark.parametrize(
    ("id", "verdict", "change"),
    [
        ("D8", FAIL, {"fgsm": 40}),  # one step breaks more than many
        ("D8", PASS, {"fgsm": 49}),  # by one picture
        ("D10", FAIL, {"uniform_noise": list(range(10, 90))}),  # noise breaks what PGD doesn't
        ("D11", FAIL, {"pgd_half": 30}),
        ("D18", FAIL, {"fgsm": 95}),
        ("D17", FAIL, {"transfer": 30}),
        ("D9", FAIL, {"transfer": 30}),
        ("D17", PASS, {"transfer": 80}),
        ("D27", FAIL, {"pgd": 30, "aa": 30}),
        ("D19", WARN, {"aa": None}),
        ("D9", UNKNOWN, {"aa": None}),
        ("D11", UNKNOWN, {"pgd_half": None}),  # an eps grid of one
    ],
)
def test_each_defect_trips_its_own(id, verdict, change):
    table = table_of(**{attack: count for attack, count in (SOUND | change).items() if count is not None})
    assert verdicts(table)[id].verdict == verdict


def test_what_square_alone_found_is_masking():
    table = table_of(**(SOUND | {"aa": 40}))
    assert verdicts(table)["D9"].verdict == PASS  # with gradients, says found_by
    here = (table["attack"] == "aa-k3") & (table["label"] != table["prediction"])
    rank = table["path"].rank(method="dense")
    table.loc[here & (rank > 40) & (rank <= 50), "found_by"] = "square"
    assert verdicts(table)["D9"].verdict == FAIL
    assert verdicts(table)["D9"].value == pytest.approx(0.1)


def test_a_constant_model_is_no_better_than_the_commonest_class():
    labels = np.array([0] * 40 + [1] * 30 + [2] * 30)
    always = np.tile([2.0, 0.0, 0.0], (100, 1))
    parts = [rows(labels, always, attack=a, eps=e) for a, e in (("none", 0.0), ("fgsm", EPS), ("pgd", EPS), ("aa-k3", EPS))]
    found = verdicts(pd.concat(parts, ignore_index=True), majority=0.4)
    assert found["D26"].verdict == WARN
    assert found["D27"].verdict == FAIL
    assert verdicts(pd.concat(parts, ignore_index=True), "clean", majority=0.4)["D27"].verdict == INFO


def test_overfitting_is_read_from_the_curve_of_adversarial_training():
    table, curve = table_of(**SOUND), make_training()
    assert "D21" not in verdicts(table, "clean", curve)
    assert verdicts(table, "adv", curve)["D20"].verdict == UNKNOWN  # without FGSM in the curve
    late = curve.assign(val_robust_accuracy=[*[0.4] * (len(curve) - 1), 0.3])
    assert verdicts(table, "adv", late)["D21"].verdict == WARN
    fooled = curve.assign(val_fgsm_accuracy=curve["val_robust_accuracy"] + 0.2)
    assert verdicts(table, "adv", fooled)["D20"].verdict == WARN


@pytest.mark.parametrize("n", [1, 2, 40])
def test_little_data_gives_verdicts_but_no_crash(n):
    found = verdicts(make_table("adv", n), "adv", make_training(1))
    assert set(found) == {f"D{i}" for i in (8, 9, 10, 11, 17, 18, 19, 20, 21, 25, 26, 27)}
    text = listed({"adv": {id: one.record() for id, one in found.items()}})
    assert text.startswith("diagnostics of adv: ")


def test_failures_are_named_with_their_model():
    record = {"D2": judge("D2", 1.0, 4, fail=0).record(), "D5": judge("D5", 0.0, 4, fail=0).record()}
    assert failed({"clean": record, "adv": {}}) == ["clean D2"]
    assert set(NAMES) == {f"D{i}" for i in range(1, 28)}
