"""The page is well formed, self-contained and escaped, and says "not enough to say" rather than nothing or NaN."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import ImageColor

from stages.core.predictions import classes_of
from stages.evaluation import figures
from stages.evaluation import metrics as m
from stages.evaluation import report as page
from tests.helpers.prediction_tables import (
    DATA,
    ENSEMBLE,
    EPS,
    GRID,
    make_corruptions,
    make_smallest,
    make_table,
    make_training,
)

PICTURES = ("classes", "overview", "crops", "duplicates", "rejected", "training", "robustness")
PICTURES += ("examples_clean", "examples_adv", "reliability", "minimum_eps", "corruptions")
VOID = {"meta", "img", "br", "link", "input"}


def make_report(models=("clean", "adv"), *, data=None, tables=None, pictures=None, **changes) -> page.Report:
    tables = tables or {model: make_table(model) for model in models}
    images = m.answers(next(iter(tables.values())))
    setting = m.EvaluationContext(EPS, GRID, m.ConfidenceIntervals(images["group"], 0.95, 200, 0))
    metrics = {"eps": EPS, "n": len(images), "groups": images["group"].nunique()} | m.baselines(images)
    metrics |= {model: m.model_metrics(table, setting) for model, table in tables.items()}
    smallest, corrupted = ({model: make(t) for model, t in tables.items()} for make in (make_smallest, make_corruptions))
    for model in tables:
        metrics[model] |= m.smallest_budgets(smallest[model]) | m.corrupted(corrupted[model])
    if len(tables) == 2:
        metrics["difference"] = m.difference(*tables.values(), setting)
    test = images["label"].value_counts().reindex(list(classes_of(images)), fill_value=0)
    made = page.Report(
        norm="linf",
        metrics=metrics,
        data=DATA | (data or {}),
        counts=pd.DataFrame({"train": 30, "val": 5, "test": test}),
        rejected=pd.DataFrame({"path": ["Type_1/<script>alert(1)</script>.jpg"], "reason": ["truncated & broken"]}),
        robustness=pd.concat([m.robustness_table(model, table, setting) for model, table in tables.items()]),
        same_images=pd.concat([m.same_images_table(model, table, setting) for model, table in tables.items()]),
        confusion=pd.concat([m.confusion_table(model, table, setting) for model, table in tables.items()]),
        per_class=pd.concat([m.per_class_table(model, table, setting) for model, table in tables.items()]),
        minimum_eps=pd.concat([m.minimum_eps_table(model, t, smallest[model], setting) for model, t in tables.items()]),
        corruptions=pd.concat([m.corruptions_table(model, t, corrupted[model], setting) for model, t in tables.items()]),
        training={model: make_training() for model in tables},
        attacks=pd.DataFrame([("pgd", 20, 0, "8/255", "clean")], columns=["attack", "steps", "seed", "budgets", "models"]),
        ensembles=[ENSEMBLE],
        figures=pictures or {},
        settings={"attack.eps": "8/255"},
        confidence=0.95,
        suspicious_accuracy=0.75,
        diagnostics={},
    )
    return dataclasses.replace(made, **changes)


class Page(HTMLParser):
    """Collects tags and text; fails on a tag that isn't closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_well_formed_and_self_contained():
    pictures = {name: b"png" for name in PICTURES}
    html = page.render(make_report(pictures=pictures))
    read = Page(html)
    assert not read.named("script")
    assert not read.named("link")
    assert "http" not in html
    images = read.named("img")
    assert len(images) == len(PICTURES)
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 30 for image in images)
    levels = [int(tag[1]) for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in read.named("a")} <= {f"#{name}" for name in ids}
    assert "nan" not in " ".join(read.text).lower().split()


def contrast(one: str, other: str) -> float:
    """WCAG 2: 1 for equal colours, 21 for black on white."""

    def luminance(colour: str) -> float:
        parts = [value / 255 for value in ImageColor.getrgb(colour)]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_its_ground_by_day_by_night_and_on_paper():
    schemes = re.findall(r":root \{(.*?)\}", page.render(make_report()))
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for text, ground in itertools.product(("ink", "soft", "link", "warn"), ("paper", "tint")):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, scheme)
    for colour in (figures.COLOURS["clean"], figures.WRONG, figures.GREY):
        assert contrast(colour, "#ffffff") >= 4.5


def test_text_from_files_is_escaped():
    html = page.render(make_report())
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in html
    assert "truncated &amp; broken" in html


def test_headline_in_words_and_as_a_table():
    report = make_report()
    values = report.metrics["clean"]
    words = page.sentences(report.metrics, "95 %", "linf")
    rate = f"{100 * values['attack_success_rate_worst']:.0f}"
    assert f"at most ±8/255 changes the answer on {rate} (95 % interval: " in words[0]
    assert f"counted on {values['clean_correct']} photographs." in words[0]
    assert "McNemar" in words[-1]
    table = page.terminal(report.metrics, "95 %", "linf")
    assert "clean training" in table.splitlines()[1]
    assert "points" in table
    assert max(map(len, table.splitlines())) < 130


def test_an_attack_that_not_every_photograph_saw_stands_beside_pgd_on_the_same_ones():
    made = make_report()
    rows = {row["attack"]: row["cells"] for row in page.attack_rows(made)}
    some = made.metrics["n"] // 3
    assert f"aa-k3 ({some} photographs)" in rows
    table = make_table("clean").groupby("attack").get_group("pgd").query("eps == @EPS").iloc[::3]
    still = (table["label"] == table["prediction"]).mean()
    assert rows[f"pgd on the same {some}"][0][0].startswith(page.percent(still))
    assert rows["pgd"] != rows[f"pgd on the same {some}"]
    html = page.render(made)
    assert "on some of the photographs only" in html
    assert "aa-k3 is made of parts of AutoAttack and is not AutoAttack: apgd_ce, square; 20 iterations" in html
    assert "pyautoattack 0.2.0" in html


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_budget_is_said_as_its_norm_means_it(norm):
    made = make_report(norm=norm)
    html, told = page.render(made), page.terminal(made.metrics, "95 %", norm)
    if norm == "linf":
        assert "every pixel value by at most ±8/255" in html
        assert "within ±8/255" in told
    else:
        assert "Euclidean length at most 0.03137 (l2)" in html
        assert "within 0.03137 (l2)" in told
        assert "±" not in html + told
        assert "every pixel" not in html
        assert "/255" not in html.replace("8/255</td>", "")  # the fixture's own settings


def test_defects_are_counted_photograph_by_photograph():
    made = make_report()
    rows = dict(page.defect_rows(made))
    clean = make_table("clean").query("attack == 'none'").iloc[::3]
    right = int((clean["label"] == clean["prediction"]).sum())
    assert rows["as they are"][0] == str(right)
    assert rows["blur"][0] == ", ".join([str(right)] * 3)  # the fixture's defects change nothing
    assert f"of {len(clean)}, at severity 1, 2, 3" in page.render(made)


def test_only_the_types_of_the_transformation_zone_are_called_that():
    assert "transformation zone" in page.render(make_report())
    other = make_table("clean", classes=("cat", "dog", "NA"))
    assert "transformation" not in page.render(make_report(tables={"clean": other}))


def test_synthetic_pictures_are_called_synthetic_and_only_real_ones_suspected():
    assert "These pictures are synthetic" in page.render(make_report())
    drawn, taken = make_report(suspicious_accuracy=0.5), make_report(data={"synthetic": False}, suspicious_accuracy=0.5)
    assert "These pictures are synthetic" not in page.render(taken)
    assert any("Look for a leak" in caution for caution in page.cautions(taken))
    assert not any("Look for a leak" in caution for caution in page.cautions(drawn))
    plausible = dataclasses.replace(taken, suspicious_accuracy=1)
    assert not any("Look for a leak" in caution for caution in page.cautions(plausible))


def test_cautions_name_what_is_weak():
    everything = make_table("clean", 30)
    constant = everything.assign(prediction="Type_2")
    told = " ".join(page.cautions(make_report(tables={"clean": constant[constant["label"] != "Type_3"]})))
    assert "isn't shown to be better than always answering the commonest class" in told
    assert "answers “Type_2” 100.0\N{NO-BREAK SPACE}% of the time" in told
    assert "No test photograph of Type_3: not enough to say about it." in told
    assert "Fewer than 10 test photographs of Type_1" in told
    assert "No predictions of adversarial training" in told
    assert "test photographs: read the intervals" in told


@pytest.mark.parametrize("n", [1, 2, 120])
@pytest.mark.parametrize("models", [("clean",), ("adv",), ("clean", "adv")])
def test_page_stands_with_one_model_and_few_images(models, n):
    shares = (1, 0, 0) if n < 3 else (0.5, 0.5, 0)
    html = page.render(make_report(tables={model: make_table(model, n, shares=shares) for model in models}))
    text = " ".join(Page(html).text)
    assert "not enough to say" in text  # about Type_3 at least
    assert "nan" not in text.lower().split()


def test_model_that_gets_nothing_right():
    table = make_table("clean", 20)
    wrong = table.assign(prediction=table["label"].map({"Type_1": "Type_2", "Type_2": "Type_3", "Type_3": "Type_1"}))
    report = make_report(tables={"clean": wrong})
    words = page.sentences(report.metrics, "95 %", "linf")
    assert "it gets none of these photographs right, so what could be changed is not enough to say" in page.render(report)
    assert "It gets none right, so what an attacker could change is not enough to say" in words[0]


def test_diagnostics_are_shown_side_by_side_and_what_does_not_pass_stands_out():
    assert "Diagnostics" not in page.render(make_report())
    check = {"verdict": "PASS", "value": 2.79e-8, "threshold": "> 1e-06 FAIL", "n": 16, "name": "no pixel leaves"}
    worse = check | {"verdict": "WARN", "value": 0.148}
    found = {"clean": {"D1": check, "D7": worse}, "adv": {"D1": check, "D20": check | {"verdict": "not enough to say"}}}
    del found["adv"]["D20"]["value"]
    made = make_report(diagnostics=found)
    assert [row["id"] for row in page.diagnostic_rows(made)] == ["D1", "D7", "D20"]
    html = page.render(made)
    assert "Clean training: 1 of 2 PASS; D7 WARN." in html
    assert "<strong>WARN</strong><br><small>0.15, n&nbsp;=&nbsp;16" in html
    assert "2.8e-08" in html
    assert "not for this model" in html


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.000980392, "0.25/255"), (0.031373, "8/255"), (0.01, "0.01")])
def test_budget_reads_as_it_was_written(eps, text):
    assert figures.format_eps(eps, "linf") == text
    assert figures.format_budget(eps, "linf") == f"±{text}"


def test_an_l2_budget_is_a_length():
    assert figures.format_budget(128 / 255, "l2") == "0.502 (l2)"


def test_figures_are_small_and_the_same_every_time():
    pictures = {"a $ sign": np.zeros((0, 8, 8, 3), np.uint8), "Type_1": np.full((2, 8, 8, 3), 99, np.uint8)}
    drawn = figures.classes(pictures)
    assert drawn == figures.classes(pictures)
    assert drawn.startswith(b"\x89PNG")
    assert b"Software" not in drawn
    assert len(drawn) < figures.LIMIT


def test_amplified_change_fills_the_range():
    original = np.full((4, 4, 3), 100, np.uint8)
    adversarial = original.copy()
    adversarial[0, 0], adversarial[1, 1] = 108, 92
    shown, factor = figures.amplified(original, adversarial)
    assert factor == 15
    assert (shown[0, 0], shown[1, 1], shown[2, 2]) == (pytest.approx(248), pytest.approx(8), pytest.approx(128))
    assert figures.amplified(original, original)[1] == 127  # nothing changed: mid grey, no division by zero
