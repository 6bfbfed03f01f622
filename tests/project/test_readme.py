"""The README's numbers are those of the committed run; links, images, parameters and paths in all documents exist."""

import io
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages import evaluate
from stages.core.budgets import format_budget
from stages.core.files import md5
from stages.core.params_file import flatten, load_stage_params
from stages.evaluation import figures
from stages.evaluation.formatting import MODEL_LABELS, attack_label, listed, percent
from stages.evaluation.style import MAX_PNG_BYTES
from stages.evaluation.summary import cluster_name, method_name
from stages.tracking.connection import VIEW_KEY
from tests.helpers.repository import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
]
DOCUMENTS += sorted(ROOT.glob("docs/**/*.md"))
WEB_LINKS = (
    "http://",
    "https://",
    "../../actions/",
)  # the last one: a page of the repository on GitHub
MAX_LINES = 130
TERMS = ("white-box", "perturbation", "robust accuracy", "majority class", "confidence interval")
COLUMNS = ("none", "uniform_noise", "fgsm", "pgd", "worst")  # of the table of results
PARAMS = load_stage_params(evaluate.Params, ROOT / "params.yaml")
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix()
)


def read_json(name: str) -> dict:
    return json.loads((ROOT / f"metrics/{name}.json").read_text(encoding="utf-8"))


def attack_steps() -> dict[str, int]:
    return {"bim": PARAMS.attack_eval.bim_steps, "pgd": PARAMS.attack_eval.pgd_steps}


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", README, re.S)
    assert found, f"README.md: expected a block <!-- {name} --> … <!-- end -->"
    return found[1]


def cell(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def results() -> str:
    """What stands in the block ``results`` of the README: paste it there when the run has changed."""
    metrics, data = read_json("evaluate"), read_json("data")
    table, steps = pd.read_csv(ROOT / "plots/robustness.csv"), attack_steps()
    table = table[(table["attack"] == "none") | np.isclose(table["eps"], metrics["eps"], rtol=1e-4)]
    names = {attack: attack_label(attack, steps.get(attack)) for attack in table["attack"].unique()}
    heads = [(names | {"worst": "Worst case (all attacks)"})[attack] for attack in COLUMNS]
    lines = [
        "| Accuracy (%) on test images | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for model, label in MODEL_LABELS.items():
        rows = table[table["model"] == model].set_index("attack")
        cells = [cell(*rows.loc[attack, ["accuracy", "low", "high"]]) for attack in COLUMNS]
        title = f"{label} ({method_name(flatten(PARAMS))})" if model == "adv" else label
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    n, attacked, change = metrics["n"], metrics["clean"]["attacked_images"], metrics["difference"]
    assert attacked == metrics["adv"]["attacked_images"]
    assert set(attacked.values()) == {n}
    attacks = listed([name for attack, name in names.items() if attack in attacked])
    low, high = (100 * change[f"robust_accuracy_worst_{end}"] for end in ("low", "high"))
    caption = (
        f"Default run on the bundled **synthetic** sample: n = {n} test images of {metrics['groups']} {cluster_name(data)}, "
        f"none of whom is in the {data['splits']['train']['images']:,} training images; "
        f"{format_budget(metrics['eps'], PARAMS.attack.norm)}; in brackets {100 * PARAMS.evaluate.confidence:g}% confidence "
        f"intervals (patient-level cluster bootstrap). Worst case per image over: {attacks}, each "
        f"on all {n} images. Adversarial fine-tuning changes robust accuracy by "
        f"{100 * change['robust_accuracy_worst']:+.1f} pp [{low:.1f}, {high:.1f}]. One run (seed {PARAMS.seed}): the "
        f"intervals contain no variance of training. The difficulty of the sample, the image size and the number of epochs "
        f"were tuned while looking at these test results."
    )
    return "\n".join([*lines, "", *textwrap.wrap(caption, 160, break_on_hyphens=False)])


def test_results_are_those_of_the_committed_run():
    assert block("results").strip() == results(), (
        f"README.md: expected in the block results:\n{results()}"
    )


def test_curve_is_that_of_the_committed_metrics():
    metrics, table = read_json("evaluate"), pd.read_csv(ROOT / "plots/robustness.csv")
    for model in MODEL_LABELS:
        worst = table[(table["model"] == model) & (table["attack"] == "worst")].set_index("eps")
        assert worst["accuracy"].loc[0] == metrics[model]["clean_accuracy"]
        for end in ("", "_low", "_high"):
            drawn = worst[end.strip("_") or "accuracy"].loc[metrics["eps"]]
            assert drawn == pytest.approx(
                metrics[model][f"robust_accuracy_worst{end}"], abs=1e-6
            ), model


def test_figure_is_drawn_from_the_committed_table():
    metrics, table = read_json("evaluate"), pd.read_csv(ROOT / "plots/robustness.csv")
    redrawn = figures.robustness(
        table, attack_steps(), evaluate.chart_context(metrics, read_json("data"), PARAMS)
    )
    files = (ROOT / "plots/robustness.png", io.BytesIO(redrawn))
    committed, expected = (np.asarray(Image.open(file).convert("RGB"), int) for file in files)
    # Not byte by byte: another build of the fonts moves an edge, other numbers move a line.
    assert committed.shape == expected.shape
    assert (np.abs(committed - expected).max(axis=2) > 40).mean() < 1e-3, (
        "plots/robustness.png isn't drawn from robustness.csv"
    )


def test_numbers_in_the_documentation_of_the_data_are_those_of_the_run():
    data, text = read_json("data"), (ROOT / "docs/data.md").read_text(encoding="utf-8")
    leakage = data["nearest_in_train"]
    shares = (leakage[name]["alike_share"] for name in ("test", "test_if_drawn_by_picture"))
    assert "On the bundled sample: {} against {}.".format(*map(percent, shares)) in text
    assert f"{data['files']:,} files" in text


def test_readme_is_short():
    assert len(README.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("term", TERMS)
def test_standard_terms_are_used(term):
    texts = [
        README,
        *(
            file.read_text(encoding="utf-8")
            for file in DOCUMENTS
            if file.is_relative_to(ROOT / "docs")
        ),
    ]
    assert any(re.search(rf"\b{term}\b", text, re.IGNORECASE) for text in texts)


IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")


def local_images(document: Path) -> list[tuple[str, str]]:
    """(alternative text, path) of every image that is a file."""
    found = IMAGE.findall(document.read_text(encoding="utf-8"))
    return [(alt, path) for alt, path in found if not path.startswith(WEB_LINKS)]


def local_links(document: Path) -> list[tuple[str, str]]:
    """(path, anchor) of every link that leads to a file, relative to the document's folder."""
    text = IMAGE.sub("", document.read_text(encoding="utf-8"))
    found = re.findall(
        r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    return [(path, anchor) for path, anchor in found if not path.startswith(WEB_LINKS)]


def heading_anchors(document: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_to_files_and_headings(document):
    for path, anchor in local_links(document):
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in heading_anchors(target), f"{path}#{anchor}"


@each_document
def test_images_are_small_described_and_made_by_the_run(document):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    plots = {ROOT / path for stage in stages for plot in stage.get("plots", ()) for path in plot}
    images = {(document.parent / path).resolve(): alt for alt, path in local_images(document)}
    assert [alt for alt in images.values() if len(alt) < 15] == [], (
        "images need a description for those who can't see them"
    )
    assert {image for image in images if not image.is_relative_to(ROOT / ".github")} <= plots
    assert [image for image in images if not image.is_file()] == [], "missing images"
    assert [image for image in images if image.stat().st_size >= MAX_PNG_BYTES] == []


def test_examples_shown_are_those_of_the_run():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]["evaluate"][
        "outs"
    ]
    (recorded,) = [out["md5"] for out in lock if out["path"] == "plots/examples_clean.png"]
    assert md5(ROOT / ".github/examples.png") == recorded, (
        "expected a copy of plots/examples_clean.png"
    )


def test_readme_shows_report_curve_and_examples():
    shown = {path for _, path in local_images(ROOT / "README.md")}
    assert {"plots/robustness.png", ".github/examples.png", ".github/report.png"} <= shown


@each_document
def test_parameters_named_exist(document):
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = [name for name, value in params.items() if isinstance(value, dict)]
    pattern = rf"(?<![/\w.-])({'|'.join(sections)})\.(\w+(?:\.\w+)*)"
    for section, keys in re.findall(pattern, document.read_text(encoding="utf-8")):
        node = params[section]
        for key in keys.split("."):
            assert key in node, f"{section}.{keys}"
            node = node[key]


def test_parameters_are_named_in_readme_and_docs():
    named = {
        name
        for file in DOCUMENTS
        for name in flatten(PARAMS)
        if name in file.read_text(encoding="utf-8")
    }
    assert {"attack.eps", "data.source", "data.groups"} <= named


@each_document
def test_files_named_exist(document):
    text = document.read_text(encoding="utf-8")
    for path in re.findall(
        r"(?<![\w/.-])((?:stages|tests|benchmarks|docs|\.ci|\.dvc)/[\w./-]*\w)", text
    ):
        assert (ROOT / path).exists() or path.startswith(".dvc/tmp"), path


def test_link_to_mlflow_is_that_of_make_and_opens_the_stored_view():
    (link,) = re.findall(r"http://127\.0\.0\.1:5000/#[^)\s]+", README)
    assert link in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert link.endswith(f"&viewStateShareKey={VIEW_KEY.removeprefix('mlflow.sharedViewState.')}")


def test_commands_stand_between_their_marks():
    assert "dvc repro" in block("main")
    assert "pytest" in block("test")
