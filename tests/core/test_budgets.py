"""Budgets read as they are written in params.yaml."""

import pytest

from stages.core.budgets import format_budget, format_eps


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.000980392, "0.25/255"),
        (0.031373, "8/255"),
        (0.01, "0.01"),
        (0.0, "0"),
    ],
)
def test_linf_eps_reads_as_it_was_written(eps, text):
    assert format_eps(eps, "linf") == text
    assert format_budget(eps, "linf") == f"L∞, ε = {text}"


def test_l2_eps_is_a_norm_of_the_whole_perturbation():
    assert format_eps(128 / 255, "l2") == "0.502"
    assert format_budget(128 / 255, "l2") == "L2, ε = 0.502"
