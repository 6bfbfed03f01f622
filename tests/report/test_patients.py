"""Patients, subgroups and discrimination: by hand, against scikit-learn, and with bad columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from stages import evaluate
from stages.report.sections import patients, subgroups
from stages.report.sections.discrimination import threshold_at, weighted_auroc
from stages.report.sections.subgroups import MAX_VALUES, MIN_IMAGES, subgroup_column
from tests.helpers.prediction_tables import make_table, predicted
from tests.helpers.reports import make_project, read_results


def test_patients_count_by_all_images_and_by_majority(project):
    """Of a, all three hold; of b one of three; c has a tie of two; d is wrong without attack."""
    groups = [*"aaa", *"bbb", *"cc", "d"]
    table = predicted([0] * 9, [0] * 8 + [1], groups=groups, pgd=[0, 0, 0, 1, 1, 0, 1, 0, 1])
    make_project(tables={"clean": table, "adv": table})
    results = read_results()
    found = patients.metrics(results, results.models["clean"])
    values = [
        found[f"patient_{case}_{rule}"]
        for case in ("clean_accuracy", "robust_accuracy_worst")
        for rule in ("all", "vote")
    ]
    assert values == [0.75, 0.75, 0.25, 0.25]
    assert (found["votes_correct"], found["votes_turned"]) == (3, 2)
    assert found["images_to_turn_vote"] == (2 + 1) / 2, "two of three, one of two"
    assert found["images_of_turned_vote"] == (3 + 2) / 2


def test_auroc_with_weights_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    members, weights = rng.random(60) < 0.4, rng.integers(0, 4, (5, 60)).astype(float)
    scores = np.round(rng.random(60) + 0.3 * members, 1)  # with ties
    expected = [roc_auc_score(members, scores, sample_weight=row) for row in weights]
    assert weighted_auroc(scores, members, weights) == pytest.approx(expected)
    assert np.isnan(weighted_auroc(scores, members, members[None].astype(float)))


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 200])
def test_threshold_has_at_least_the_specificity(n):
    scores = np.random.default_rng(n).permutation(n) / max(n, 1)
    threshold = threshold_at(scores, 0.9)
    assert (scores > threshold).sum() == n // 10, "and no lower one has"


@pytest.mark.parametrize(
    ("values", "shown", "refused"),
    [
        ([*"ab"] * 40, {"a": 40, "b": 40}, False),
        (["2", "10", ""] * 40, {"2": 40, "10": 40}, False),
        ([str(i) for i in range(160)], dict.fromkeys(range(4), 40), False),
        (["7"] * 100 + [str(i) for i in range(60)], None, False),
        ([f"note {i}" for i in range(60)], {}, True),
        ([*map(str, range(60)), "inf"], {}, True),
        (["a"] * MIN_IMAGES + ["b"] * (MIN_IMAGES - 1), {"a": MIN_IMAGES}, False),
        ([""] * 50, {}, False),
    ],
)
def test_column_is_used_binned_or_refused(values, shown, refused):
    column = subgroup_column("x", np.array(values))
    assert bool(column.refused) == refused
    assert sum(column.counts.values()) == sum(value != "" for value in values), "none is lost"
    if not refused:
        assert len(column.counts) <= MAX_VALUES
        sizes = [column.counts[name] for name in column.shown]
        assert shown is None or sizes == [*shown.values()]


def test_subgroups_name_the_worst_and_suppress_the_small(project):
    table = make_table(n=200, per_group=2)
    make_project(tables={"clean": table, "adv": make_table("adv", n=200, per_group=2)}, size=16)
    paths = sorted(set(table["path"]))
    devices = dict(zip(paths, ["<old>"] * 80 + ["new"] * 100 + ["lent"] * 20, strict=True))
    cells = [(path, "device", device) for path, device in devices.items()]
    cells += [(path, "note", path) for path in paths[5:]]
    file = Path("data/processed/subgroups.csv")
    pd.DataFrame(cells, columns=["path", "column", "value"]).to_csv(file, index=False)
    found = evaluate.main()["adv"]
    accuracies = found["subgroups"]["device"]
    assert accuracies.keys() == {"<old>", "new"}
    first, second = (accuracies[name]["robust_accuracy_worst"] for name in ("<old>", "new"))
    change = found["subgroup_difference"]["device"]
    assert change["robust_accuracy_worst"] == pytest.approx(-abs(first - second), abs=1e-5)
    assert change["clean_accuracy_low"] <= change["clean_accuracy"] <= 0
    results = read_results()
    remarks = [[*subgroups.remarks(results, c)] for c in subgroups.columns(results)]
    text = repr(remarks)
    assert "lent (n = 20)" in text
    assert "note: no subgroups, 195 different values" in text
    assert paths[7] not in text, "free text may name a patient"
