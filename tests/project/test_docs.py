"""Documents say what is true: numbers of the committed run; links, images, parameters, paths."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops

from stages.core.files import md5
from stages.core.params_file import flatten, load_params
from stages.report.formatting import percent
from tests.helpers.repository import ROOT, paths_of
from tools import docs

DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "benchmarks/README")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
# The last two: pages of the repository on GitHub.
WEB = ("http://", "https://", "../../actions/", "../../deployments/")
IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix()
)


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def test_generated_parts_are_those_of_records_and_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    for file, expected in docs.documents().items():
        assert text_of(file) == expected, f"{file}: expected another text: run make tables"


def test_examples_shown_are_those_of_the_run(monkeypatch):
    lock = yaml.safe_load(text_of(ROOT / "dvc.lock"))["stages"]["evaluate"]["outs"]
    (recorded,) = (out["md5"] for out in lock if out["path"] == "plots/examples_clean.png")
    assert md5(ROOT / ".github/examples.png") == recorded, "run make tables"
    monkeypatch.chdir(ROOT)
    with Image.open(docs.FIRST_EXAMPLE) as first:
        assert ImageChops.difference(first, docs.first_example()).getbbox() is None


def test_numbers_about_the_data_are_those_of_the_run():
    data, text = json.loads(text_of(ROOT / "metrics/data.json")), text_of(ROOT / "docs/data.md")
    test = data["nearest_in_train"]["test"]
    by_group = test["alike_by_group"]
    alike = f"{percent(test['alike_share'])} look-alikes, in random splits by group "
    expected = f"{percent(by_group['low'])} to {percent(by_group['high'])}"
    assert f"On the bundled sample: {alike}{expected};" in " ".join(text.split())
    assert f"{data['files']:,} files" in text


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_to_files_and_headings(document):
    text = re.sub(r"```.*?```", "", IMAGE.sub("", text_of(document)), flags=re.S)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if not path.startswith(WEB):
            target = document.parent / path if path else document
            assert target.exists(), path
            assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@each_document
def test_images_exist_and_are_described_and_small(document):
    stages = yaml.safe_load(text_of(ROOT / "dvc.yaml"))["stages"].values()
    plots = {ROOT / path for stage in stages for path in paths_of(stage.get("plots", []))}
    for description, path in IMAGE.findall(text_of(document)):
        if path.startswith(WEB):
            continue
        image = (document.parent / path).resolve()
        assert len(description) > 15, f"{path}: expected a description for who can't see it"
        assert image.is_relative_to(ROOT / ".github") or image in plots, path
        assert image.stat().st_size < 200_000, path


@each_document
def test_parameters_named_exist(document):
    params = flatten(load_params(ROOT / "params.yaml"))
    sections = {key.partition(".")[0] for key in params if "." in key}
    pattern = rf"(?<![/\w.-])((?:{'|'.join(sections)})\.\w+(?:\.\w+)*)"
    text = re.sub(r"```python.*?```|\]\([^)]*\)", "", text_of(document), flags=re.S)
    for name in re.findall(pattern, text):
        assert name in params or any(key.startswith(f"{name}.") for key in params), name


@each_document
def test_files_named_exist(document):
    folders = "stages|tools|tests|benchmarks|docs|\\.ci|\\.dvc"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", text_of(document)):
        assert (ROOT / path).exists() or path.startswith(".dvc/tmp"), path


def test_commands_stand_between_their_marks():
    readme = text_of(ROOT / "README.md")
    for name, word in (("main", "dvc repro"), ("test", "pytest")):
        (block,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", readme, re.S)
        assert word in block


def test_labels_of_mermaid_diagrams_are_quoted():
    """Unquoted, Mermaid takes signs for syntax: 11 @, others brackets, and all of them `end`."""
    label = re.compile(r'[\[(/]*"[^"]*"[\])/]*')
    for document in DOCUMENTS:
        for diagram in re.findall(r"```mermaid\n(.*?)```", text_of(document), re.S):
            rest = label.sub("", diagram)
            assert re.fullmatch(r"[\w\s&>-]*", rest), f"{document.name}: {rest}"
            assert not re.search(r"\bend\b", rest), document.name
