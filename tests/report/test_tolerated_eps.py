"""The ε that a model tolerates: closed forms, censoring, and the ratio of two models."""

import math

import numpy as np
import pytest

from stages.report.comparison import overall_metrics
from stages.report.sections import tolerated_eps
from stages.report.sections.tolerated_eps import crossing, interval_of, ratio_bounds
from tests.helpers.prediction_tables import EPS, make_table, predicted
from tests.helpers.reports import make_project, read_results


@pytest.mark.parametrize(
    ("level", "expected"), [(0.3, 1.5), (0.5, 1), (0.9, 0), (0.95, 0), (0.1, 4), (0.05, math.inf)]
)
def test_curve_is_interpolated_between_the_eps_tried(level, expected):
    eps, accuracy = np.array([0.0, 1, 2, 4]), np.array([[0.9, 0.5, 0.1 + 1e-9, 0.1]])
    found = crossing(eps, accuracy, np.array([level]))
    assert found == pytest.approx([expected], abs=1e-6)


def test_interval_takes_infinite_values_as_they_are():
    values = np.array([*range(90), *[math.inf] * 10], float)[::-1]
    assert interval_of(values, 0.95) == (2, math.inf)
    assert interval_of(values, 0.8) == (10, 89)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1, 3, (3, 3)),
        (2, math.inf, (4, math.inf)),
        (math.inf, 2, (0, 0.25)),
        (math.inf, math.inf, (0, math.inf)),
        (0, 3, (math.inf, math.inf)),
    ],
)
def test_ratio_is_bounded_where_a_model_lies_beyond_the_largest_eps(first, second, expected):
    bounds = ratio_bounds(np.array([first], float), np.array([second], float), largest=8.0)
    assert tuple(float(bound[0]) for bound in bounds) == expected


def test_model_with_twice_the_eps_tolerates_twice_as_much(project):
    """The second model's rows are those of the first one at half of the ε."""
    table = make_table(grid=(EPS / 2, EPS), n=240, per_group=3)
    make_project(tables={"clean": table, "adv": table.assign(eps=2 * table["eps"])})
    results = read_results()
    results.metrics = overall_metrics(results)
    found = [results.metrics[f"tolerated_eps_ratio{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([2, 2, 2], rel=1e-4)
    values = [tolerated_eps.metrics(results, model) for model in results.models.values()]
    assert values[0]["tolerated_eps_low"] < values[0]["tolerated_eps"] < EPS
    assert values[1]["tolerated_eps"] == pytest.approx(2 * values[0]["tolerated_eps"], rel=1e-4)


def test_what_lies_beyond_is_said_so(project):
    """The first model falls to the majority class between 0 and ε, the second does not."""
    labels = [0, 0, 1, 2] * 15
    first = predicted(labels, labels, pgd=[1, 1, 2, 0] * 15)
    make_project(tables={"clean": first, "adv": predicted(labels, labels)})
    results = read_results()
    results.metrics = overall_metrics(results)
    for name, model in results.models.items():
        results.metrics[name] = tolerated_eps.metrics(results, model)
    assert results.metrics["clean"]["tolerated_eps"] == pytest.approx(EPS / 2, rel=1e-4)
    assert "tolerated_eps" not in results.metrics["adv"]
    assert 1.5 < results.metrics["tolerated_eps_ratio_at_least"] <= 2
    first, second, ratio = tolerated_eps.sentences(results)
    assert "beyond ε = 8/255" in second
    assert "at least" in ratio
