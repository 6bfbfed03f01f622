"""Every diagnostic passes on sound results, trips on its fault, and says so where data are few."""

import itertools
import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from stages.core.predictions import CLEAN, is_correct
from stages.report.checks.check import FAIL, INCONCLUSIVE, INFO, PASS, WARN, Measured
from stages.report.checks.registry import GROUPS, failed_checks, run_checks
from stages.report.sections import minimum_eps
from tests.helpers.prediction_tables import EPS, make_table, misclassified
from tests.helpers.reports import (
    ATTACK_CHECKS,
    ATTACKS,
    ENSEMBLE,
    MODEL_CHECKS,
    make_project,
    read_results,
)

CHECKS = {check.id: check for checks in GROUPS.values() for check in checks}
LIMITED = {id_ for id_, check in CHECKS.items() if (check.warn, check.fail) != (None, None)}
TRIPPED = {WARN, FAIL}
N = 240


def check(table=None, results=None, **changes):
    """What is found about the adversarially trained model; ``changes`` are of its curve."""
    adv = make_table("adv", N) if table is None else table
    make_project(tables={"clean": adv, "adv": adv}, results=results)
    read = read_results()
    model = read.models["adv"]
    read.models["adv"] = replace(model, history=model.history.assign(**changes))
    read.plots |= minimum_eps.SECTION.compute_tables(read)
    return run_checks(read)["adv"]


def at(table, *attacks):
    """(rows,) bool: under one of these attacks at the main ε."""
    return table["attack"].isin(attacks) & (table["eps"] == EPS)


# A change of the predictions, or of the training curve, and the checks that must not pass then.
PREDICTION_FAULTS = {
    # One step succeeds where many fail; so do the helper's transfer attacks, which are FGSM.
    ("D8", "D9", "D17"): lambda t: misclassified(t, at(t, "fgsm")),
    ("D9",): lambda t: t.assign(found_by=t["found_by"].mask(at(t, "apgd"), "square")),
    ("D10",): lambda t: misclassified(t, at(t, "uniform_noise")),
    ("D18",): lambda t: t.assign(found_by=t["found_by"].mask(at(t, "pgd"), CLEAN)),
    ("D26",): lambda t: make_table("adv", N, always="first"),
    ("D27",): lambda t: misclassified(t, at(t, "pgd")),
    ("D28",): lambda t: misclassified(t, at(t, "universal")),  # unknown to the minimum's search
}
CURVE_FAULTS = {
    "D20": {"val_fgsm_accuracy": [0.1, 0.2, 0.3, 0.4, 0.4, 0.9]},
    "D21": {"val_robust_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.4]},
}


def test_sound_results_pass(results):
    for model, found in results.checks.items():
        expected = {id_: PASS if id_ in LIMITED else INFO for id_ in found}
        expected |= {id_: INFO for id_ in found if model in CHECKS[id_].info}
        assert {id_: result["verdict"] for id_, result in found.items()} == expected
    assert results.checks["adv"].keys() == CHECKS.keys()
    assert CHECKS.keys() - results.checks["clean"].keys() == CURVE_FAULTS.keys()
    assert failed_checks(results) == []


@pytest.mark.parametrize("ids", PREDICTION_FAULTS)
def test_fault_of_the_attacks_trips_its_check(project, ids):
    found = check(PREDICTION_FAULTS[ids](make_table("adv", N)))
    assert {found[id_]["verdict"] for id_ in ids} <= TRIPPED


@pytest.mark.parametrize("id_", CURVE_FAULTS)
def test_fault_of_the_training_trips_its_check(project, id_):
    assert check(**CURVE_FAULTS[id_])[id_]["verdict"] in TRIPPED


def test_every_measured_quantity_trips_one_check_and_every_check_can_fail(project):
    make_project(n=N)
    results = read_results()
    model, tripped = results.models["adv"], []
    results.plots |= minimum_eps.SECTION.compute_tables(results)
    for table, names in (("model_checks", MODEL_CHECKS), ("attack_checks", ATTACK_CHECKS)):
        file = model.folder / f"{table}.csv"
        sound = pd.read_csv(file)
        for name in names:
            sound.assign(value=2.0 * (sound["check"] == name)).to_csv(file, index=False)
            found = {id_: check.result(results, model) for id_, check in CHECKS.items()}
            (id_,) = (id_ for id_ in found if found[id_]["verdict"] in TRIPPED)
            tripped.append(id_)
        sound.to_csv(file, index=False)
    assert len(tripped) == len(set(tripped))
    assert {*tripped, *itertools.chain(*PREDICTION_FAULTS), *CURVE_FAULTS} == LIMITED


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_verdicts_change_at_the_limits_and_need_enough_images(check):
    def verdict(value, n=10**6):
        return check.verdict("adv", Measured(value, n))

    assert verdict(0.0, 0) == verdict(math.nan) == INCONCLUSIVE
    if check.id not in LIMITED:
        assert verdict(1e9) == INFO
        return
    limits = {WARN: check.warn, FAIL: check.fail}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    best, worse = (1.0, -1e-9) if check.must_exceed else (0.0, 1e-9)
    for name, limit in limits.items():
        assert verdict(limit + worse) == name
        assert (verdict(limit) == name) == check.must_exceed
        assert name in check.threshold
    assert verdict(best) == PASS
    if check.rate:
        limit = min(limit for limit in limits.values() if limit)
        assert verdict(best, check.needed - 1) == INCONCLUSIVE
        assert verdict(best, check.needed) == PASS
        for power, expected in ((0.49, INCONCLUSIVE), (0.5, PASS)):
            assert check.verdict("adv", Measured(best, 2 * check.needed, power)) == expected
        assert (1 - limit) ** check.needed <= 0.05, "a rate above the limit may show in no image"
    else:
        assert verdict(best, 1) == PASS


def test_nothing_measured_and_nothing_correct_is_inconclusive(project):
    empty = pd.DataFrame(columns=["check", "value", "n"])
    tables = {"model_checks": empty, "attack_checks": empty}
    found = check(make_table("adv", 30, always="wrong"), tables)
    known = {"D8", "D10", "D17", "D25", "D26", "D27", *CURVE_FAULTS}
    for id_ in found.keys() - known:
        assert (found[id_]["verdict"], found[id_]["n"]) == (INCONCLUSIVE, 0)
        assert "value" not in found[id_]


def test_square_on_some_of_the_remaining_images_stands_for_all_of_them(project):
    table = make_table("adv", N)
    wrong = at(table, "apgd") & ~is_correct(table)
    one = table.assign(found_by=table["found_by"].mask(wrong & ~wrong.duplicated(), "square"))
    correct = int(is_correct(table[table["attack"] == CLEAN]).sum())
    make_project(tables={"clean": one, "adv": one})
    results = read_results()
    model = results.models["adv"]
    for square, images in ((40, correct), (20, correct // 2), (10, correct // 4)):
        config = json.dumps(ENSEMBLE | {"square_images": square})
        (model.folder / "ensemble.json").write_text(config)
        found = CHECKS["D9"].result(results, model)
        assert found["value"] == pytest.approx(40 / square / correct)
        assert (found["n"], found["verdict"]) == (images, WARN)


@pytest.mark.parametrize(
    ("power", "verdict"), [(0.1, INCONCLUSIVE), (0.9, PASS), (None, INCONCLUSIVE)]
)
def test_black_box_attack_that_finds_little_proves_little(power, verdict, project):
    """None: no image is known to fall, so that nothing is known of Square."""
    rows = [] if power is None else [("square_power", power, 32)]
    table = pd.DataFrame(rows, columns=["check", "value", "n"])
    found = check(results={"attack_checks": table})["D9"]
    assert (found["verdict"], found["power"]) == (verdict, power or 0)


def test_surrogate_that_succeeds_where_gradients_fail_is_gradient_masking(project):
    table = make_table("adv", N)
    surrogate = table[at(table, "pgd")].assign(attack="surrogate")
    record = {"attack": ["surrogate"], "label": ["Surrogate"], "kind": ["transfer"]}
    attacks = pd.concat([ATTACKS, pd.DataFrame(record)])
    stronger = misclassified(surrogate, at(surrogate, "surrogate"))
    found = check(pd.concat([table, stronger], ignore_index=True), {"attacks": attacks})
    assert {found["D9"]["verdict"], found["D17"]["verdict"]} == {FAIL}


def test_minimum_perturbation_found_at_the_budget_itself_is_within_it(results):
    """Its norm is computed in float32."""
    curve = pd.DataFrame({"model": "adv", "eps": [0, 0.03], "changed": [0, 0.2], "count": N})
    exact, rounded = (
        CHECKS["D28"].compute(replace(results, plots={"minimum_eps": table}), results.models["adv"])
        for table in (curve, curve.assign(eps=[0, EPS * (1 + 2e-6)]))
    )
    assert exact == rounded
