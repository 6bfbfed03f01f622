"""How the results of the diagnostics are graded, titled and grouped."""

import re

import pytest

from stages.core.checks import FAIL, GROUPS, INCONCLUSIVE, PASS, TITLES, WARN, grade
from tests.helpers.repository import ROOT

IDS = [f"D{i}" for i in range(1, 28)]


@pytest.mark.parametrize(("value", "verdict"), [(0.005, PASS), (0.01, PASS), (0.05, WARN), (0.1, WARN), (0.5, FAIL)])
def test_verdict_follows_the_thresholds(value, verdict):
    assert grade("D5", value, 10, warn=0.01, fail=0.1).verdict == verdict


def test_no_data_is_inconclusive_and_has_no_value():
    assert grade("D5", 0.5, 0, warn=0.01).verdict == INCONCLUSIVE
    result = grade("D5", float("nan"), 9, warn=0.01)
    assert result.verdict == INCONCLUSIVE
    assert "value" not in result.to_dict()


def test_single_image_is_not_enough_for_a_failure():
    assert grade("D8", 0.5, 2, fail=0.01, images=1).verdict == PASS
    assert grade("D8", 0.5, 2, fail=0.01, images=2).verdict == FAIL


def test_every_diagnostic_has_a_title_a_group_and_a_line_in_the_docs():
    assert list(TITLES) == IDS
    assert sorted(check for members in GROUPS.values() for check in members) == sorted(IDS)
    assert re.findall(r"^\| (D\d+) \|", (ROOT / "docs/diagnostics.md").read_text(encoding="utf-8"), re.M) == IDS
