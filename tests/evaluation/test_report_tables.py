"""The rows of the report's tables."""

import pytest
from stages.core.checks import GROUPS
from stages.evaluation.formatting import NOT_AVAILABLE, metric, percent
from stages.evaluation.report_tables import (
    attack_rows,
    attacked_corruption_rows,
    check_groups,
    confusion_matrices,
    corruption_rows,
    cost_rows,
    parameter_rows,
    per_class_rows,
)

from tests.helpers.prediction_tables import make_table
from tests.helpers.reports import PARAMS, make_report


def attack_rows_of(report):
    return dict(attack_rows(report.metrics, report.tables["robustness"], report.steps))


def test_attack_rows_have_accuracy_and_success_rate_of_each_model():
    report = make_report()
    rows = attack_rows_of(report)
    attacks = [
        "Clean",
        "Uniform noise",
        "Gaussian noise",
        "FGSM",
        "BIM",
        "PGD-10",
        "Universal",
        "Ensemble (apgd)",
        "Worst case",
    ]
    assert list(rows) == attacks
    for number, model in enumerate(("clean", "adv")):
        metrics = report.metrics[model]
        assert rows["Clean"][number][1] == ""
        for label, attack in (("FGSM", "fgsm"), ("Ensemble (apgd)", "apgd")):
            accuracy, rate = rows[label][number]
            assert accuracy.startswith(percent(metrics["robust_accuracy"][attack]))
            assert rate == metric(metrics["attack_success_rate"], attack)
        assert rows["Worst case"][number][1] == metric(metrics, "attack_success_rate_worst")


def test_cost_rows_have_steps_psnr_and_ssim_or_say_that_there_is_no_adversarial_example():
    report = make_report()
    adv = report.metrics["adv"] | {"mean_psnr": {"pgd": 35.44}, "mean_ssim": {"pgd": 0.9871}}
    rows = {
        attack: (steps, cells)
        for attack, steps, cells in cost_rows(
            report.metrics | {"adv": adv}, report.steps, ["clean", "adv"]
        )
    }
    clean = [
        f"{report.metrics['clean']['mean_psnr']['pgd']:.1f} dB",
        f"{report.metrics['clean']['mean_ssim']['pgd']:.3f}",
    ]
    assert rows["PGD"] == (10, [*clean, "35.4 dB", "0.987"])
    assert rows["FGSM"][1][2:] == [NOT_AVAILABLE] * 2
    assert len(rows) == len(attack_rows_of(report)) - 2, "without clean images and the worst case"


def test_attacked_corruption_rows_show_accuracy_without_and_under_attack():
    report = make_report()
    rows = dict(attacked_corruption_rows(report.tables["attacked_corruptions"], ["clean", "adv"]))
    assert list(rows) == ["Blur", "Glare", "Rotation and shift"]
    clean, adv = (report.metrics[model] for model in ("clean", "adv"))
    cells = [cell.partition("%")[0] for cell in rows["Blur"]]
    expected = [
        clean["clean_accuracy"],
        clean["robust_accuracy"]["pgd"],
        adv["clean_accuracy"],
        adv["robust_accuracy"]["pgd"],
    ]
    assert cells == [percent(value)[:-1] for value in expected]
    assert [bool(cell) for cell in rows["Rotation and shift"]] == [False, True] * 2, (
        "its case without attack: clean images"
    )


def test_attack_that_one_model_lacks_is_not_available():
    adv = make_table("adv")
    tables = {"clean": make_table("clean"), "adv": adv[adv["attack"] != "bim"]}
    first, second = attack_rows_of(make_report(tables=tables))["BIM"]
    assert first[0].endswith("]")
    assert second == (NOT_AVAILABLE, NOT_AVAILABLE)


def test_corruption_rows_start_with_the_same_clean_images():
    rows = corruption_rows(make_report().tables["corruptions"], ["clean", "adv"])
    clean = make_report().metrics["clean"]["clean_accuracy"]
    assert rows[0]["corruption"] == "Clean"
    assert rows[0]["cells"][0].startswith(percent(clean))
    cells = [row["cells"] for row in rows if row["corruption"] == "Blur"]
    assert cells == [rows[0]["cells"]] * 3  # the fixture's corruptions change no prediction
    assert [row["severity"] for row in rows] == ["", 1, 2, 3, 1, 2, 3, ""]
    assert rows[-1]["cells"][0] == percent(clean)


def test_class_without_test_images_is_not_available():
    table = make_table("clean")
    report = make_report(tables={"clean": table[table["label"] != "Type_3"]})
    rows = per_class_rows(report.tables["per_class"], ["Type_1", "Type_2", "Type_3"], ["clean"])
    assert rows[2] == ("Type_3", 0, [NOT_AVAILABLE, NOT_AVAILABLE])
    for name, n, cells in rows[:2]:
        assert n == report.counts.loc[name, "test"]
        assert cells[0].startswith(percent(report.metrics["clean"][f"recall_{name}"]))


def test_confusion_matrices_add_up_to_the_test_images():
    report = make_report()
    matrices = confusion_matrices(report.tables["confusion"])
    assert [matrix["title"] for matrix in matrices] == [
        f"{label}, {case}"
        for label in ("Standard training", "Adversarial fine-tuning")
        for case in ("clean", "worst case")
    ]
    for matrix in matrices:
        assert [actual for actual, _ in matrix["rows"]] == ["Type_1", "Type_2", "Type_3"]
        assert sum(cell["count"] for _, cells in matrix["rows"] for cell in cells) == 120


def test_checks_are_grouped_and_a_missing_one_leaves_an_empty_cell():
    check = {
        "verdict": "PASS",
        "value": 2.79e-8,
        "threshold": "> 1e-06 FAIL",
        "n": 16,
        "name": "Perturbation norm",
    }
    checks = {"clean": {"D1": check, "D7": check}, "adv": {"D1": check, "D20": check}}
    groups = dict(check_groups(checks, GROUPS, ["clean", "adv"]))
    assert list(groups) == list(GROUPS)
    found = {name: [row["id"] for row in rows] for name, rows in groups.items() if rows}
    assert found == {
        "Model and implementation": ["D1"],
        "Gradient masking": ["D7"],
        "Training": ["D20"],
    }
    assert groups["Training"][0]["cells"] == [None, check]
    assert groups["Training"][0]["threshold"] == "> 1e-06 FAIL"


@pytest.mark.parametrize(
    ("norm", "eps", "grid"), [("linf", "8/255", "2/255, 4/255, 8/255"), ("l2", "0.5", "0.25, 0.5")]
)
def test_all_parameters_are_listed_with_readable_eps(norm, eps, grid):
    changes = {"attack.norm": norm} | (
        {"attack.eps": 0.5, "attack.eps_grid": [0.25, 0.5]} if norm == "l2" else {}
    )
    rows = dict(parameter_rows(PARAMS | changes))
    assert rows.keys() == PARAMS.keys()
    assert (rows["attack.eps"], rows["attack.eps_grid"]) == (eps, grid)
    assert rows["train_clean.val_eps"] == "8/255"  # always L∞
    assert rows["train_clean.augment.flip"] == "true"
    assert rows["train_adv.lr"] == "0.04"


def test_single_model_gives_a_single_column():
    report = make_report(("adv",))
    assert {len(cells) for cells in attack_rows_of(report).values()} == {1}
    assert {
        len(row["cells"]) for row in corruption_rows(report.tables["corruptions"], ["adv"])
    } == {1}
