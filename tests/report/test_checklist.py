"""The checklist says of every item what the run has for it, and nothing that it hasn't."""

import copy
import fnmatch
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from stages.report import checklist
from stages.report.checklist import EVIDENCE, NONE, PARTIAL, STATES, YOURS
from stages.report.formatting import NBSP


def item(results, name):
    (found,) = (each for each in checklist.fill(results) if each.item == name)
    return found


@pytest.fixture
def changed(results):
    """Results that a test may change."""
    other = copy.copy(results)
    other.metrics, other.checks = copy.deepcopy(results.metrics), copy.deepcopy(results.checks)
    return other


def test_every_key_of_the_checklist_has_a_name_or_is_a_diagnostic(results):
    named = {found.key for found in checklist.all_numbers(results)}
    for filled in checklist.fill(results):
        for pattern in filled.absent:
            # What the made project lacks.
            assert pattern.startswith("data:") or fnmatch.filter(checklist.NAMES, pattern), pattern
    assert {"clean_accuracy", "recall_Type_1", "corrupted_accuracy", "D9"} < named
    assert not [key for key in named if key.endswith(("_low", "_high"))]


def test_item_without_its_numbers_is_none_and_without_some_partial(changed):
    name = "Article 15(5), adversarial examples"
    assert item(changed, name).status == EVIDENCE
    for model in changed.models:
        del changed.metrics[model]["robust_accuracy_worst"]
    assert item(changed, name).status == PARTIAL
    assert item(changed, name).absent == ["robust_accuracy_worst"]
    for model in changed.models:
        del changed.metrics[model]["attack_success_rate"]
        del changed.metrics[model]["attack_success_rate_worst"]
    assert item(changed, name).status == NONE
    assert item(changed, name).numbers == []


def test_subgroups_and_patients_count_as_evidence_where_they_are_known(changed):
    assert item(changed, "14 fairness").status == NONE
    for model in changed.models:
        case = {"clean_accuracy": -0.1, "clean_accuracy_low": -0.2, "clean_accuracy_high": 0.0}
        changed.metrics[model]["subgroup_difference"] = {"site no. 1": case}
    found = item(changed, "14 fairness")
    assert found.status == PARTIAL
    assert [number.text(changed).replace(NBSP, " ") for number in found.numbers] == [
        "−10.0 pp [−20.0, +0.0]"
    ] * 2
    assert found.numbers[0].name == "clean accuracy by site no. 1, worst minus best"
    (vote,) = {
        number.n for number in item(changed, "23a performance").numbers if "vote" in number.key
    }
    assert vote == changed.metrics["groups"]


def test_every_scripted_status_turns_none_when_the_run_has_no_number(changed):
    changed.metrics = {model: {} for model in changed.models}
    changed.checks = {model: {} for model in changed.models}
    changed.data = {}
    assert {filled.status for filled in checklist.fill(changed)} == {NONE, YOURS}


def test_what_nobody_measures_is_none_and_what_no_run_knows_is_yours(results):
    assert item(results, "threat, data poisoning").status == NONE
    assert item(results, "Annex IV, 5").status == YOURS
    assert item(results, "5.3 stability").status == PARTIAL, "an upper bound proves nothing"


def test_table_has_the_numbers_of_the_metrics_with_interval_n_and_file(evaluated, results):
    table = pd.read_csv(evaluated[0] / "data/checklist.csv", keep_default_na=False)
    assert set(table["status"]) == set(STATES)
    assert set(table["synthetic"]) == {"yes"}
    robust = table[(table["key"] == "robust_accuracy_worst") & (table["model"] == "adv")].iloc[0]
    values = results.metrics["adv"]
    for column, key in {"value": "", "low": "_low", "high": "_high"}.items():
        assert float(robust[column]) == values[f"robust_accuracy_worst{key}"]
    assert (int(robust["n"]), robust["file"]) == (results.n, "metrics/evaluate.json")
    recall = table[table["key"] == "recall_Type_1"].iloc[0]
    assert int(recall["n"]) == (results.images["label"] == "Type_1").sum()
    rate = table[(table["key"] == "attack_success_rate_worst") & (table["model"] == "adv")].iloc[0]
    assert int(rate["n"]) == values["clean_correct"]
    without = table[table["status"].isin([NONE, YOURS])]
    assert set(without["value"]) == {""}


class Texts(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_shows_all_items_and_claims_no_compliance(evaluated, results):
    page = Texts((evaluated[0] / "data/checklist.html").read_text())
    card = (evaluated[0] / "data/model_card.md").read_text()
    assert not page.open
    for filled in checklist.fill(results):
        assert filled.item in page.text
        assert filled.asks in page.text
    assert not re.search(r"\b(nan|None|undefined)\b", page.text)
    for text in (page.text, card):
        assert not re.search(r"complian|compl(y|ies)\b|certif|conformity", text, re.IGNORECASE)
    assert str(Path("data/checklist.html")) in card
