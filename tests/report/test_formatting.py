"""One style for numbers and names; everything that can be run has a label."""

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.norms import NORMS
from stages.core.params import TrainAdvParams
from stages.report.formatting import (
    NBSP,
    NOT_AVAILABLE,
    capitalized,
    listed,
    metric,
    percent,
    proportion,
)
from stages.report.sections.training import METHOD_NAMES, method_name
from stages.report.style import eps_axis, make_figure, truncate
from tests.helpers.params import params


def test_metric_has_its_interval():
    values = {"accuracy": 0.8731, "accuracy_low": 0.8042, "accuracy_high": 0.9325, "loss": 0.35394}
    assert metric(values, "accuracy") == f"87.3% [80.4,{NBSP}93.2]"
    assert metric(values, "loss", unit="") == "0.354"
    assert metric(values, "auc") == percent(None) == NOT_AVAILABLE
    row = {"recall": 0.5, "low": 0.25, "high": 0.75}
    assert proportion(row, "recall") == f"50.0% [25.0,{NBSP}75.0]"


def test_differences_are_signed_percentage_points():
    change = {"accuracy": -0.049, "accuracy_low": -0.124, "accuracy_high": 0.028}
    assert metric(change, "accuracy", signed=True) == f"−4.9{NBSP}pp [−12.4,{NBSP}+2.8]"
    assert percent(0.396, signed=True) == f"+39.6{NBSP}pp"


def test_names_in_sentences():
    assert [listed(list("abc"[:k])) for k in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert [capitalized(text) for text in ("low light", "JPEG", "")] == ["Low light", "JPEG", ""]


@pytest.mark.parametrize(
    ("method", "awp", "name"),
    [("nfgsm", 0, "N-FGSM"), ("pgd", 0, "PGD-10"), ("trades", 0.01, "TRADES-10 + AWP")],
)
def test_training_method_is_named_with_its_steps(method, awp, name):
    p = params().train_adv
    assert method_name(p.model_copy(update={"method": method, "steps": 10, "awp": awp})) == name


def test_every_training_method_has_a_name():
    assert set(get_args(TrainAdvParams.model_fields["method"].annotation)) == METHOD_NAMES.keys()


@given(st.text(st.sampled_from("ab$ü"), max_size=30))
def test_name_next_to_an_axis_is_short_and_no_formula(text):
    shown = truncate(text)
    assert len(shown.replace(r"\$", "$")) <= 18
    assert shown.count("$") == shown.count(r"\$")


@pytest.mark.parametrize("grid", [[0, 1, 2, 4, 8], [0, 8], [0, 0.25, 0.5, 127], [0]])
def test_ticks_of_eps_keep_both_ends_and_do_not_touch(grid):
    axis = make_figure(4, 3, 1, 1)[1][0, 0]
    eps_axis(axis, grid, NORMS["linf"])
    ticks = list(axis.get_xticks())
    assert (ticks[0], ticks[-1]) == (grid[0], grid[-1])
    assert all(after - before > 0.06 * grid[-1] for before, after in itertools.pairwise(ticks))
