"""The page is well formed, self-contained, escaped and legible; the model card likewise."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import ImageColor

from stages import evaluate
from stages.report import page
from stages.report.blocks import Figure, Text
from stages.report.formatting import metric, percent
from stages.report.section import Section
from stages.report.sections import data
from stages.report.sections.registry import SECTIONS
from stages.report.sections.summary import caveats, lead
from stages.report.style import COLORS, GRAY, TEXT_COLORS, WRONG
from stages.report.verdict import DOUBTFUL, SOUND, verdict
from tests.helpers.prediction_tables import make_smoothing, make_table
from tests.helpers.reports import DESCRIPTION, make_project, read_results, texts_of

VOID = {"meta", "img", "br", "input"}
ATTRIBUTES = re.compile(
    "alt|aria-label|aria-labelledby|charset|class|colspan|content|href|id|lang|name|role|rowspan|"
    "scope|src|style|tabindex|type"
)
DOMAIN_WORDS = re.compile(
    r"transformation|colposcop|cervi[xc]|stain|acetic|lugol|squamo|lesion|cancer|disease", re.I
)


class Page(HTMLParser):
    """Collects tags and texts; fails on a tag that isn't closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        """What is read on the page, with the alternatives of its figures."""
        texts = [*self.texts, *(image["alt"] for image in self.attributes("img"))]
        return re.sub(r"[ \n]+", " ", " ".join(texts))

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def assert_valid(html, card):
    """What must hold of any page and card."""
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|url\(|@import", html)
    found = Page(html)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in found.tags}
    assert all(ATTRIBUTES.fullmatch(name) for _, attrs in found.tags for name in attrs)
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in found.attributes("a")} <= {f"#{name}" for name in ids}
    assert {attrs["aria-labelledby"] for attrs in found.attributes("section")} <= set(ids)
    for word, tag in (("Figure", "figure"), ("Table", "table")):
        numbers = re.findall(rf"<strong>{word} (\d+)\.</strong>", html)
        assert list(map(int, numbers)) == list(range(1, 1 + len(numbers))), "gaps"
        assert set(numbers) == set(re.findall(rf'id="{tag}-(\d+)"', html))
    assert all(i["src"].startswith("data:image/png;base64,") for i in found.attributes("img"))
    for text in (found.text, card):
        assert not re.search(r"\b(nan|inf|None|undefined|NaN)\b", text)
    opening, metadata, _ = card.split("---\n", 2)
    assert opening == ""
    assert len(yaml.safe_load(metadata)["model-index"]) == 2
    tables = [lines.splitlines() for lines in re.findall(r"(?:^\|.*\n)+", card, re.M)]
    for header, rule, *body in tables:
        assert re.fullmatch(r"\|(---\|)+", rule)
        for line in (header, *body):
            assert len(re.findall(r"(?<!\\)\|", line)) == rule.count("|"), line
    return found


def read(folder):
    """Page and card that lie in a project."""
    html, card = ((folder / f"data/{n}").read_text() for n in ("report.html", "model_card.md"))
    return assert_valid(html, card), card


def evaluated_page(**options):
    make_project(**options)
    evaluate.main()
    for file in Path("plots").glob("*.csv"):
        assert not pd.read_csv(file, keep_default_na=False).isin(["", "nan"]).any(axis=None), file
    return read(Path())


@pytest.fixture(scope="module")
def shown(evaluated):
    return read(evaluated[0])


def test_page_is_accessible(shown):
    found, _ = shown
    assert found.attributes("html") == [{"lang": "en"}]
    assert all(len(image["alt"]) > 30 for image in found.attributes("img"))
    levels = [int(tag[1]) for tag, _ in found.tags if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in attrs or "colspan" in attrs for attrs in found.attributes("th"))


def figures_in(blocks):
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        yield from figures_in(getattr(block, "blocks", ()))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.id)
def test_section_stands_on_the_page_and_draws_what_it_shows(results, shown, section):
    found, _ = shown
    blocks = section.blocks(results)
    assert (section.id in {attrs.get("id") for _, attrs in found.tags}) == bool(blocks)
    assert {figure.name for figure in figures_in(blocks)} <= results.figures.keys()
    files = [name for figure in figures_in(blocks) for name in figure.data.split(", ") if name]
    curves = {"training_clean", "training_adv"}
    assert {name.removesuffix(".csv") for name in files} <= {*results.plots, *curves}


def test_every_figure_and_every_plot_is_named_on_the_page(results, shown):
    found, _ = shown
    blocks = [lead(results), *(section.blocks(results) for section in SECTIONS)]
    names = {figure.name for part in blocks for figure in figures_in(part)}
    assert names == results.figures.keys()
    assert len(found.attributes("img")) == len(names)
    for name in results.plots:
        assert f"plots/{name}.csv" in found.text


@pytest.mark.usefixtures("project", "drawn")
def test_new_section_needs_no_other_file(monkeypatch):
    extra = Section(
        "extra",
        "An extra section",
        lambda results: [Text(f"{results.metrics['adv']['answer']} <i>"), Figure("f", "alt", "c")],
        tables=lambda results, model: {"extra": pd.DataFrame({"model": [model.name], "x": 1})},
        metrics=lambda results, model: {"answer": 42 + len(results.plot("extra", model.name))},
        figures=lambda results: {"f": b"drawn"},
    )
    for module in (evaluate, page):
        monkeypatch.setattr(module, "SECTIONS", (*SECTIONS, extra))
    found, _ = evaluated_page(n=4, examples=1, size=16)
    assert "An extra section" in found.text
    assert "43 <i>" in found.text
    assert pd.read_csv("plots/extra.csv")["model"].tolist() == ["clean", "adv"]
    assert Path("plots/f.png").read_bytes() == b"drawn"
    assert '"answer": 43' in Path("metrics/evaluate.json").read_text()


def test_page_and_card_give_accuracies_with_intervals_digests_and_all_parameters(results, shown):
    found, card = shown
    for model in results.models:
        for name in ("clean_accuracy", "robust_accuracy_worst", "attack_success_rate_worst"):
            number = metric(results.metrics[model], name)
            assert number in card
            assert number in found.text
    assert card.count(DESCRIPTION["sha256"]) == 2
    assert DESCRIPTION["sha256"][:16] in found.text
    assert DESCRIPTION["device"] in found.text
    sections = results.p.model_dump()
    keys = {f"{s}.{key}" for s, v in sections.items() if isinstance(v, dict) for key in v}
    assert all(key in found.text for key in keys)
    index = yaml.safe_load(card.split("---\n")[1])["model-index"]
    for entry in index:
        values = results.metrics[entry["name"]]
        numbers = [found["value"] for found in entry["results"][0]["metrics"]]
        assert numbers == [values["clean_accuracy"], values["robust_accuracy_worst"]]


HOSTILE = "</code><script>alert('1')</script>\"&<b>|$x$ _ü_"


@pytest.mark.usefixtures("project")
def test_names_are_shown_as_they_are_and_become_no_markup():
    params = dict.fromkeys(("data.group_pattern", "model.arch", "model.weights"), HOSTILE)
    params["data.source"] = f"data/x{HOSTILE}/"
    results = {"model": DESCRIPTION | {"arch": HOSTILE}}
    classes = (HOSTILE, "$", "label")
    found, card = evaluated_page(n=9, size=16, classes=classes, results=results, params=params)
    assert not {"script", "b"} & {tag for tag, _ in found.tags}
    assert found.text.count("<script>") > 10
    assert any("<script>" in image["alt"] for image in found.attributes("img"))
    assert "broken <b>.jpg" in found.text
    assert "<" not in card.split("---\n", 2)[2].replace(r"\<", "")
    assert not re.search(r"(?<!\\)\$", card.split("---\n", 2)[2])


@pytest.mark.usefixtures("project", "drawn")
def test_other_data_gets_no_words_of_colposcopy_and_real_data_is_not_called_synthetic(shown):
    params = {"data.source": "my/pets: all", "data.crop": "none"}
    params["evaluate.suspicious_accuracy"] = 0.1
    found, card = evaluated_page(
        n=9, size=16, classes=("cat", "dog", "NA"), data={"synthetic": False}, params=params
    )
    parameters = re.compile(r"square \(|cervix|params\.yaml")
    for text, ours in ((parameters.sub("", found.text), shown[0].text), (card, shown[1])):
        assert not DOMAIN_WORDS.findall(text)
        assert "transformation zone" in ours
        assert "synthetic" not in text.lower()
        assert "data leakage" in text
    index = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert index[0]["results"][0]["dataset"]["name"] == "pets: all"


L2 = {"attack.norm": "l2", "attack.eps": 0.5, "attack.eps_grid": [0.25, 0.5]}
SOFTMAX = pd.DataFrame({"check": ["looks_like_softmax"], "value": [1.0], "n": [99]})
SMOOTHING = {
    "smoothing_settings": {
        **{"sigma": 0.25, "copies": 200, "alpha": 0.001, "attack_copies": 8, "attack_steps": 5}
    },
    "smoothing": make_smoothing(make_table(n=8)),
}
SECOND = make_table(n=8, grid=(0.25, 0.5)).replace({"norm": {"linf": "l2"}})


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "options",
    [
        {"n": 1},
        {"n": 2, "always": "wrong"},
        {"n": 8, "per_group": 8},  # all of one patient
        {"n": 30, "per_group": 4, "classes": ("1", "NA"), "fractions": (0.4, 0.6)},
        {"n": 12, "grid": (0.25, 0.5), "params": L2},
        {"n": 8, "results": {"second_norm": SECOND}, "params": {"attack.second_eps": 0.5}},
        {"n": 8, "results": SMOOTHING, "params": {"attack_eval.smoothing_sigma": 0.25}},
    ],
    ids=lambda options: ", ".join(f"{k} {v}" for k, v in options.items() if k != "results"),
)
def test_degenerate_data_give_a_valid_page_and_complete_numbers(options, request):
    # Rendering takes most of the time.
    drawn = request.getfixturevalue("drawn") if options["n"] > 2 else []
    found, _ = evaluated_page(size=16, examples=1, **options)
    if "grid" in options:  # L∞, whatever the norm: D12 and train_clean.val_eps
        texts = [found.text, *(text for figure in drawn for text in texts_of(figure))]
        allowed = r"64/255 in L∞|train_clean\.val_eps 8/255|PGD-5, L∞, ε = 8/255"
        assert not re.search("255|∞|no pixel value", re.sub(allowed, "", " ".join(texts)))
    on_demand = {"second_norm": "A second norm", "smoothing": "Randomized smoothing"}
    for name, title in on_demand.items():
        assert (title in found.text) == (name in options.get("results", {}))


@pytest.mark.usefixtures("project", "drawn")
@pytest.mark.parametrize(
    ("options", "style", "words"),
    [
        ({"n": 40, "always": "first"}, "fail", "Neither model beats always answering"),
        ({"n": 40, "always": "correct"}, "warn", "does not change the accuracy under attack"),
        ({"n": 240, "results": {"model_checks": SOFTMAX}}, "fail", "clean D2 and adv D2 failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_verdict_comes_first_and_is_red_where_the_numbers_mean_nothing(options, style, words):
    found, _ = evaluated_page(size=16, **options)
    boxes = [attrs["class"] for attrs in found.attributes("div") if "box" in attrs.get("class", "")]
    assert boxes[0] == f"box {style}"
    assert words in found.text
    assert found.text.index(words) < found.text.index("Clean accuracy")


def test_verdict_of_a_sound_run_gives_both_robust_accuracies(results):
    found = verdict(results)
    assert found.style == SOUND
    for values in (results.metrics[name] for name in results.models):
        assert percent(values["robust_accuracy_worst"]) in found.headline


def test_implausible_accuracy_is_a_caveat_for_real_images_only(results):
    def warned(synthetic, limit):
        e = results.p.evaluate.model_copy(update={"suspicious_accuracy": limit})
        p = results.p.model_copy(update={"evaluate": e})
        texts = caveats(replace(results, p=p, data={**results.data, "synthetic": synthetic}))
        return any("data leakage" in text for text in texts)

    assert (warned(False, 0.5), warned(False, 1.0), warned(True, 0.5)) == (True, False, False)


def test_signs_of_leakage_are_caveats_and_make_the_verdict_doubtful(results):
    leaking = results.data["nearest_in_train"] | {"signs": ["9% of the test images are copies"]}
    found = replace(results, data=results.data | {"nearest_in_train": leaking})
    assert set(caveats(found)) - set(caveats(results)) == {"9% of the test images are copies"}
    assert (verdict(results).style, verdict(found).style) == (SOUND, DOUBTFUL)


@pytest.mark.usefixtures("project", "drawn")
def test_caveats_name_what_is_weak(shown):
    options = {"fractions": (0.1, 0.9, 0), "data": {"images": 999}, "always": "first"}
    weak, _ = evaluated_page(n=40, size=16, per_group=2, **options)
    for words in (
        "is not significantly above the majority-class baseline",
        "prediction collapse",
        "No test image of Type 3",
        "Fewer than 10 test images of Type 1",
        "Only 40 test images",
        "The patient is not known for all images",
    ):
        assert words in weak.text
        assert words not in shown[0].text


@pytest.mark.parametrize("count", [0, 101])
def test_excluded_files_are_listed_up_to_a_hundred(project, count):
    make_project(n=4, size=16)
    names = [f"file {i:03d}.jpg" for i in range(count)]
    table = pd.DataFrame({"path": names, "reason": "empty"})
    table.to_csv("data/processed/rejected.csv", index=False)
    text = repr(data.blocks(read_results()))
    assert f"{count} files were excluded" in text
    assert [name in text for name in names] == [i < 100 for i in range(count)]


def luminance(color):
    parts = [value / 255 for value in color]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """WCAG 2: 1 for equal colors, 21 for black on white."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_has_contrast_on_every_background(scheme):
    css = (Path(page.__file__).parent / "page.css").read_text()
    css = dict(
        zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", css, re.S), strict=True)
    )
    named = re.findall(r"--(\w+): (#\w+)", css[scheme])
    colors = {name: ImageColor.getrgb(value) for name, value in named}
    for text in ("ink", "soft", "link", "good", "warn", "fail"):
        for background in ("paper", "tint"):
            assert contrast(colors[text], colors[background]) >= 4.5, (text, background)
    # The darkest cell of a confusion matrix: 60% of its color.
    cell = map(int, re.search(r"--cell: ([\d, ]+)", css[scheme])[1].split(","))
    blended = [
        0.6 * value + 0.4 * under for value, under in zip(cell, colors["paper"], strict=True)
    ]
    assert contrast(colors["ink"], blended) >= 4.5


@pytest.mark.parametrize("color", [*TEXT_COLORS.values(), COLORS["clean"], WRONG, GRAY])
def test_text_colors_of_the_figures_have_contrast_on_white(color):
    assert contrast(ImageColor.getrgb(color), (255, 255, 255)) >= 4.5
