"""The model card: metadata that the Hub can read, well-formed tables, and no word that the data don't justify."""

import re

import pytest
import yaml
from stages.evaluation.formatting import metric
from stages.evaluation.model_card import EVIDENCE, LABELS, escape_markdown, evidence_rows, render

from tests.helpers.prediction_tables import DESCRIPTION, make_table
from tests.helpers.reports import make_report

DOMAIN_WORDS = re.compile(
    r"transformation|colposcop|cervi|medical$|diagnos[ei]s|lesion|cancer|disease", re.IGNORECASE
)
OTHER_CLASSES = ("cat", "a|b *c*", "<script>")


def metadata_of(card: str) -> dict:
    opening, metadata, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(metadata)


def tables_of(card: str) -> list[list[str]]:
    """The lines of each table."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", card, re.M)]


def other_report(**changes):
    tables = {model: make_table(model, classes=OTHER_CLASSES) for model in ("clean", "adv")}
    return make_report(tables=tables, params={"data.source": "my/pets: all"}, **changes)


def test_metadata_is_yaml_with_the_measured_accuracies():
    report = make_report()
    metadata = metadata_of(render(report))
    assert (metadata["license"], metadata["library_name"]) == ("mit", "pytorch")
    assert {"colposcopy", "synthetic-data"} <= set(metadata["tags"])
    for entry, model in zip(metadata["model-index"], ("clean", "adv"), strict=True):
        (result,) = entry["results"]
        assert entry["name"] == model
        assert {"type", "name"} <= result["dataset"].keys()
        values = [found["value"] for found in result["metrics"]]
        assert values == [
            report.metrics[model][key] for key in ("clean_accuracy", "robust_accuracy_worst")
        ]


def test_card_gives_numbers_with_intervals_n_digests_and_threat_model():
    report = make_report()
    card = render(report)
    for model in ("clean", "adv"):
        for key in ("clean_accuracy", "robust_accuracy_worst", "attack_success_rate_worst"):
            assert metric(report.metrics[model], key) in card
    assert card.count(DESCRIPTION["sha256"]) == 2
    assert "n = 120 test images" in card
    assert "White-box, untargeted, L∞, ε = 8/255" in card
    assert "Not a medical device" in card
    assert "| all | 90 | 15 | 120 |" in card


@pytest.mark.parametrize(
    "report", [make_report(), make_report(("adv",)), other_report()], ids=["both", "adv", "other"]
)
def test_tables_are_well_formed(report):
    tables = tables_of(render(report))
    assert len(tables) == 6
    for header, rule, *rows in tables:
        assert re.fullmatch(r"\|(---\|)+", rule)
        for line in (header, *rows):
            assert len(re.findall(r"(?<!\\)\|", line)) == rule.count("|"), line


def test_every_item_has_its_numbers_and_none_claims_compliance():
    report = make_report()
    rows = evidence_rows(report)
    assert len(rows) == sum(len(keys) for *_, keys in EVIDENCE)
    assert {number for _, _, number, _ in rows} == set(LABELS.values())
    assert all("%" in cell or re.match(r"\d\.\d{3} ", cell) for *_, cells in rows for cell in cells)
    card = render(report)
    assert {"MEASURE 2.5", "MEASURE 2.6", "MEASURE 2.7"} <= set(re.findall(r"MEASURE 2\.\d", card))
    assert "Article 15(5)" in card
    assert not re.search(r"complian|compl(y|ies)\b|certif|conformity", card, re.IGNORECASE)


def test_other_data_gets_no_words_of_colposcopy_and_no_synthetic_warning():
    card = render(other_report(data={"synthetic": False}))
    assert not DOMAIN_WORDS.findall(card)
    assert "synthetic" not in card.lower()
    assert metadata_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == "pets: all"


def test_names_cannot_become_markup():
    assert escape_markdown("a|b\n*c* <i>") == r"a\|b \*c\* \<i\>"
    card = render(other_report())
    assert "<script>" not in card
    assert r"\<script\>" in card


@pytest.mark.parametrize("n", [1, 2])
def test_card_of_few_images_says_what_is_not_available(n):
    card = render(make_report(tables={"clean": make_table("clean", n, fractions=(1, 0, 0))}))
    assert "n/a" in card
    assert "inconclusive, n =" in card
    assert not {"nan", "inf", "None"} & set(card.split())
