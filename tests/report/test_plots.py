"""The tables in plots/: what a row holds, and its interval."""

import pandas as pd

from stages.core.predictions import select
from stages.report.intervals import wilson_interval
from stages.report.sections import attacked_corruptions, corruptions, minimum_eps
from tests.helpers.prediction_tables import CLASSES, predicted
from tests.helpers.reports import make_project, read_results

VALUES = ("accuracy", "recall", "coverage", "changed")  # what an interval may be of


def table_of(section, table, **results):
    """A plot of the first of two models that make these predictions."""
    make_project(tables={"clean": table, "adv": table}, results=results)
    read = read_results()
    (plot,) = section.tables(read, read.models["clean"]).values()
    return plot


def test_every_table_names_its_models_misses_no_value_and_has_values_in_their_intervals(results):
    for name, table in results.plots.items():
        assert list(table["model"].unique()) == list(results.models), name
        assert not table.isna().any(axis=None), name
        if "low" in table:
            (value,) = set(VALUES) & set(table)
            assert ((table["low"] <= table[value]) & (table[value] <= table["high"])).all(), name


def test_minimum_eps_curve_is_of_correct_images_and_ends_at_the_largest_eps(project):
    table = predicted([0] * 5, [0, 0, 0, 0, 1])
    required = select(table)[["path", "label"]]
    required = required.assign(eps=[0.02, 0.01, 0.02, 0.25, 0.0], found=[1, 1, 1, 0, 1])
    curve = table_of(minimum_eps, table, minimum_eps=required)
    cells = list(zip(curve["eps"], curve["changed"], strict=True))
    assert cells == [(0, 0), (0.01, 0.25), (0.02, 0.75), (0.25, 0.75)]
    assert set(curve["count"]) == {4}
    assert (curve["low"].iloc[2], curve["high"].iloc[2]) == wilson_interval(0.75, 4, 0.95)


def corrupted(table, cases):
    """corruptions.csv: (corruption, severity, attack) -> predictions of the first images."""
    clean = select(table)
    return pd.concat(
        clean.head(len(classes)).assign(
            corruption=name,
            severity=severity,
            attack=attack,
            prediction=[CLASSES[k] for k in classes],
        )
        for (name, severity, attack), classes in cases.items()
    )


def test_corruptions_are_compared_with_the_same_clean_images(project):
    table = predicted([0, 0, 1, 1, 2], [0, 1, 1, 1, 2])
    cases = {("blur", 1, "none"): (0, 1, 2, 2), ("blur", 1, "pgd"): (0, 0, 1, 1)}
    found = table_of(corruptions, table, corruptions=corrupted(table, cases))
    cells = found[["corruption", "severity", "accuracy", "count"]].to_numpy().tolist()
    assert cells == [["none", 0, 0.75, 4], ["blur", 1, 0.25, 4]]
    assert (found["low"].iloc[1], found["high"].iloc[1]) == wilson_interval(0.25, 4, 0.95)


def test_attacked_corruptions_are_compared_with_the_same_corruption_without_attack(project):
    table = predicted([0, 0, 1, 1], [0, 0, 1, 1])
    cases = {
        ("blur", 1, "none"): (0, 0, 1, 1),
        ("blur", 2, "none"): (0, 0, 1, 0),
        ("blur", 2, "pgd"): (0, 1, 0, 0),
        ("spatial", 1, "grid"): (1, 1, 1, 1),
    }
    found = table_of(attacked_corruptions, table, corruptions=corrupted(table, cases))
    cells = found[["corruption", "attack", "accuracy", "count"]].to_numpy().tolist()
    expected = [["blur", "none", 0.75, 4], ["blur", "pgd", 0.25, 4], ["spatial", "grid", 0.5, 4]]
    assert cells == expected
