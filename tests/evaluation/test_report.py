"""The page is well formed, self-contained, escaped and legible, whatever the data."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest
from PIL import ImageColor
from stages.evaluation.formatting import NBSP, metric
from stages.evaluation.report import Report, render
from stages.evaluation.style import COLORS, GRAY, WRONG

from tests.helpers.prediction_tables import CLASSES, DESCRIPTION, ENSEMBLE, make_table
from tests.helpers.reports import PARAMS, make_report

FIGURES = (
    *("robustness", "minimum_eps", "universal", "examples_clean", "examples_adv"),
    *("gradients", "reliability", "corruptions"),
)
FIGURES += ("classes", "overview", "crops", "duplicates", "rejected", "training")
PNGS = dict.fromkeys(FIGURES, b"png")
VOID = {"meta", "img", "br", "link", "input"}
HOSTILE = "</code><script>alert('1')</script>\"&<b>"
DOMAIN_WORDS = re.compile(
    r"transformation|colposcop|cervi|stain|acetic|lugol|squamo|disease", re.IGNORECASE
)


class Page(HTMLParser):
    """Collects tags and texts; fails on a tag that isn't closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.captions, self._texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("figcaption", "caption"):
            self.captions.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self._texts.append(data)
        if {"figcaption", "caption"} & set(self.open):
            kind, text = self.captions[-1]
            self.captions[-1] = (kind, text + data)

    @property
    def text(self) -> str:
        """What is read on the page, white space collapsed."""
        return re.sub(r"[ \n]+", " ", "".join(self._texts))

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def captions_of(self, tag):
        return [text for kind, text in self.captions if kind == tag]


def page_of(report: Report) -> Page:
    return Page(render(report))


def test_page_is_well_formed_and_self_contained():
    html = render(make_report(figures=PNGS))
    page = Page(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "http" not in html
    assert "url(" not in html
    images = page.attributes("img")
    assert len(images) == len(FIGURES)
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert "nan" not in page.text.lower().split()


def test_page_is_accessible():
    page = page_of(make_report(figures=PNGS))
    assert page.attributes("html") == [{"lang": "en"}]
    assert all(len(image["alt"]) > 30 for image in page.attributes("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.attributes("a")} <= {f"#{name}" for name in ids}
    assert {attrs["aria-labelledby"] for attrs in page.attributes("section")} <= set(ids)
    assert all("scope" in attrs or "colspan" in attrs for attrs in page.attributes("th"))


def test_figures_and_tables_are_numbered_and_name_their_data():
    page = page_of(make_report(figures=PNGS))
    for tag, word, count in (
        ("figcaption", "Figure", len(FIGURES)),
        ("caption", "Table", len(page.attributes("table"))),
    ):
        captions = page.captions_of(tag)
        assert [re.match(rf"{word} (\d+)\. ", caption)[1] for caption in captions] == [
            str(k + 1) for k in range(count)
        ]
    named = " ".join(page.captions_of("figcaption") + page.captions_of("caption"))
    for file in (
        "robustness",
        "minimum_eps",
        "per_class",
        "confusion",
        "reliability",
        "corruptions",
        "training_clean",
    ):
        assert f"plots/{file}.csv" in named
    assert "metrics/diagnostics.json" in named
    assert "metrics/evaluate.json" in named


def luminance(color: tuple[int, int, int]) -> float:
    parts = [value / 255 for value in color]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """WCAG 2: 1 for equal colors, 21 for black on white."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_has_contrast_on_every_background(scheme):
    schemes = re.findall(r":root \{(.*?)\}", render(make_report()))
    assert len(schemes) == 3
    css = schemes[("light", "dark", "print").index(scheme)]
    colors = {name: ImageColor.getrgb(value) for name, value in re.findall(r"--(\w+): (#\w+)", css)}
    for text, background in itertools.product(
        ("ink", "soft", "link", "warn", "fail"), ("paper", "tint")
    ):
        assert contrast(colors[text], colors[background]) >= 4.5, (text, background)
    # The darkest cell of a confusion matrix: 60% of its color.
    cell = [int(value) for value in re.search(r"--cell: ([\d, ]+)", css)[1].split(",")]
    blended = tuple(
        0.6 * value + 0.4 * under for value, under in zip(cell, colors["paper"], strict=True)
    )
    assert contrast(colors["ink"], blended) >= 4.5


def test_text_colors_of_the_figures_have_contrast_on_white():
    for color in (COLORS["clean"], WRONG, GRAY):
        assert contrast(ImageColor.getrgb(color), (255, 255, 255)) >= 4.5


def test_text_from_files_is_escaped():
    html = render(make_report())
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in html
    assert "truncated &amp; broken" in html


def test_hostile_names_are_escaped_wherever_they_stand():
    classes = (HOSTILE, "dog", "NA")
    params = {
        "data.source": f"data/x{HOSTILE}",
        "data.group_pattern": HOSTILE,
        "model.weights": HOSTILE,
    }
    ensemble = ENSEMBLE | {"name": HOSTILE, "library": HOSTILE, "attacks": [HOSTILE]}
    check = {"verdict": "PASS", "value": 0.0, "threshold": HOSTILE, "n": 1, "name": HOSTILE}
    report = make_report(
        tables={model: make_table(model, classes=classes) for model in ("clean", "adv")},
        params=params,
        figures=PNGS,
        ensembles={"clean": ensemble, "adv": ensemble},
        models=dict.fromkeys(("clean", "adv"), DESCRIPTION | {"arch": HOSTILE}),
        versions={HOSTILE: HOSTILE},
        checks={"clean": {"D1": check}, "adv": {"D1": check}},
    )
    page = page_of(report)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>") > 10
    assert any(HOSTILE in image["alt"] for image in page.attributes("img"))
    assert not [name for _, attrs in page.tags for name in attrs if name not in {
        "alt", "aria-label", "aria-labelledby", "charset", "class", "colspan", "content", "href", "id", "lang", "name", "role",
        "rowspan", "scope", "src", "style", "tabindex",
    }]  # fmt: skip


def test_headline_gives_both_accuracies_with_intervals():
    report = make_report()
    html = render(report)
    for model in ("clean", "adv"):
        for name in ("clean_accuracy", "robust_accuracy_worst"):
            assert f"<dd>{metric(report.metrics[model], name)}</dd>" in html
    assert re.search(rf"\d\d\.\d% \[\d+\.\d,{NBSP}\d+\.\d\]", html)
    text = Page(html).text
    assert "Adversarial fine-tuning (N-FGSM)" in text
    assert "one run (seed 0), so the intervals contain no variance of training" in text


def test_ensemble_is_described_and_not_called_autoattack():
    lean = page_of(make_report()).text
    assert "Ensemble apgd, on what no attack before it found" in lean
    assert "AutoAttack" not in lean
    config = ENSEMBLE | {"name": "aa-k3", "attacks": ["apgd_ce", "square"]}
    full = page_of(make_report(ensembles={"clean": config, "adv": config})).text
    assert "but not AutoAttack" in full
    assert "apgd_ce and square; 20 iterations" in full
    assert "pyautoattack 0.2.0" in full


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_is_written_as_its_norm_means_it(norm):
    html = render(make_report(params={"attack.norm": norm}))
    if norm == "linf":
        assert "L∞, ε = 8/255" in html
        assert "no pixel value changes by more than ε" in html
    else:
        assert "L2, ε = 0.03137" in html
        assert "the Euclidean norm of the whole perturbation is at most ε" in html
        assert "no pixel value" not in html
        assert "L∞" not in html
        # Left: the fixture's own table of attacks, and train_clean.val_eps, which is an L∞ budget whatever the norm.
        assert html.count("/255") == html.count("<td>8/255</td>")


def test_domain_words_appear_only_with_types_of_the_transformation_zone():
    assert "transformation zone" in page_of(make_report(figures=PNGS)).text
    tables = {model: make_table(model, classes=("cat", "dog", "NA")) for model in ("clean", "adv")}
    page = page_of(make_report(tables=tables, figures=PNGS))
    texts = [page.text, *(image["alt"] for image in page.attributes("img"))]
    assert not [word for text in texts for word in DOMAIN_WORDS.findall(text)]


def test_crop_caption_speaks_of_detection_only_with_cervix_crops():
    assert (
        "no cervix was detected"
        in page_of(make_report(figures=PNGS, params={"data.crop": "cervix"})).text
    )
    assert (
        "no cervix was detected"
        not in page_of(make_report(figures=PNGS, params={"data.crop": "square"})).text
    )


def test_synthetic_data_is_named_in_every_figure_caption():
    page = page_of(make_report(figures=PNGS))
    assert "Synthetic data. The images were generated by a program" in page.text
    captions = page.captions_of("figcaption")
    assert len(captions) == len(FIGURES)
    assert all("Synthetic data." in caption for caption in captions)


def test_real_data_is_not_called_synthetic():
    assert "synthetic" not in render(make_report(figures=PNGS, data={"synthetic": False})).lower()


@pytest.mark.parametrize("n", [1, 2, 120])
@pytest.mark.parametrize("models", [("clean",), ("adv",), ("clean", "adv")])
def test_page_renders_with_one_model_and_few_images(models, n):
    fractions = (1, 0, 0) if n < 3 else (0.5, 0.5, 0)
    page = page_of(
        make_report(
            tables={model: make_table(model, n, fractions=fractions) for model in models},
            figures=PNGS,
        )
    )
    assert re.search(r"No test image of [^.]*Type 3\.", page.text)
    assert "n/a" in page.text  # the recall of Type 3
    assert not {"nan", "inf"} & set(page.text.lower().split())


def test_page_renders_for_a_model_without_correct_images():
    table = make_table("clean", 20)
    wrong = table.assign(
        prediction=table["label"].map({"Type_1": "Type_2", "Type_2": "Type_3", "Type_3": "Type_1"})
    )
    page = page_of(make_report(tables={"clean": wrong}))
    assert "so there is no attack success rate" in page.text
    assert "Standard training: no image is classified correctly without attack." in page.text


def test_diagnostics_are_shown_per_model_and_warnings_stand_out():
    check = {
        "verdict": "PASS",
        "value": 2.79e-8,
        "threshold": "> 1e-06 FAIL",
        "n": 16,
        "name": "Perturbation norm above ε",
    }
    inconclusive = {key: value for key, value in check.items() if key != "value"} | {
        "verdict": "INCONCLUSIVE"
    }
    warned, failed = check | {"verdict": "WARN", "value": 0.148}, check | {"verdict": "FAIL"}
    checks = {"clean": {"D1": check, "D7": warned}, "adv": {"D1": failed, "D20": inconclusive}}
    html = render(make_report(checks=checks))
    assert "Standard training: 1 of 2 passed; D7 WARN." in html
    assert "Adversarial fine-tuning: 0 of 2 passed; D1 FAIL, D20 INCONCLUSIVE." in html
    assert '<span class="warning">WARN</span><br><small>0.15, n&nbsp;=&nbsp;16' in html
    assert '<span class="fail">FAIL</span><br><small>2.8e-08, n&nbsp;=&nbsp;16' in html
    assert "INCONCLUSIVE</span><br><small>n&nbsp;=&nbsp;16" in html
    assert html.count("<td><small>n/a</small></td>") == 2
    rows = [html.index(f'<th scope="row">{check} ') for check in ("D1", "D7", "D20")]
    assert rows == sorted(rows)


def test_settings_identify_models_attacks_and_all_parameters():
    page = page_of(make_report())
    assert "resnet50, 23,514,179 parameters" in page.text
    assert f"{DESCRIPTION['sha256'][:16]}…" in page.text
    assert all(key in page.text for key in PARAMS)
    assert "Python 3.11.0" in page.text


def test_excluded_files_are_listed_up_to_a_hundred():
    report = make_report()
    many = report.rejected.loc[[0] * 101].assign(path=[f"file {i:03d}.jpg" for i in range(101)])
    page = page_of(dataclasses.replace(report, rejected=many))
    assert "101 files were excluded" in page.text
    assert "Excluded files: the first 100 of 101 in data/processed/rejected.csv" in page.text
    assert "file 099.jpg" in page.text
    assert "file 100.jpg" not in page.text
    assert (
        "0 files were excluded" in page_of(dataclasses.replace(report, rejected=many.iloc[:0])).text
    )


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b")])
def test_confusion_matrix_has_a_cell_per_pair_of_classes(classes):
    fractions = [1 / len(classes)] * len(classes)
    page = page_of(
        make_report(tables={"clean": make_table("clean", classes=classes, fractions=fractions)})
    )
    cells = [attrs for attrs in page.attributes("td") if "rgba" in attrs.get("style", "")]
    assert len(cells) == 2 * len(classes) ** 2
