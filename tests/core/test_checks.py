"""How the results of the diagnostics are graded, titled and grouped."""

import re

import pytest

from stages.core.checks import FAIL, GROUPS, INCONCLUSIVE, PASS, TITLES, WARN, grade
from tests.helpers.repository import ROOT

IDS = [f"D{i}" for i in range(1, 29)]


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.005, PASS), (0.01, PASS), (0.05, WARN), (0.1, WARN), (0.5, FAIL)]
)
def test_verdict_follows_the_thresholds(value, verdict):
    assert grade("D5", value, 300, warn=0.01, fail=0.1).verdict == verdict


def test_no_data_is_inconclusive_and_has_no_value():
    assert grade("D5", 0.5, 0, warn=0.01).verdict == INCONCLUSIVE
    result = grade("D5", float("nan"), 9, warn=0.01)
    assert result.verdict == INCONCLUSIVE
    assert "value" not in result.to_dict()


def test_rate_of_fewer_images_than_its_limit_needs_is_inconclusive_or_bad():
    """Of 299 images none may show a fault that 1 % have (the rule of three)."""
    assert grade("D5", 0.0, 300, warn=0.01, fail=0.1).verdict == PASS
    assert grade("D5", 0.0, 299, warn=0.01, fail=0.1).verdict == INCONCLUSIVE
    assert grade("D5", 0.05, 20, warn=0.01, fail=0.1).verdict == WARN
    assert grade("D5", 0.5, 2, warn=0.01, fail=0.1).verdict == FAIL
    assert grade("D5", 0.0, 30, warn=0, fail=0.1).verdict == PASS, "a limit of zero names no rate"
    assert grade("D2", 0.0, 1, fail=0.01).verdict == PASS, "not a rate of images"


def test_every_diagnostic_has_a_title_a_group_and_a_line_in_the_docs():
    assert list(TITLES) == IDS
    assert sorted(check for members in GROUPS.values() for check in members) == sorted(IDS)
    assert (
        re.findall(
            r"^\| (D\d+) \|", (ROOT / "docs/diagnostics.md").read_text(encoding="utf-8"), re.M
        )
        == IDS
    )
