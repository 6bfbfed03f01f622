"""The stage as a whole: what it writes, that it writes the same bytes twice, and that DVC draws it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
import vl_convert
import yaml
from PIL import Image
from stages.core.checks import INCONCLUSIVE, grade
from stages.evaluation import figures, image_figures
from stages.evaluation.selection import select_predictions
from stages.evaluation.style import MAX_PNG_BYTES

from stages import evaluate
from stages.core.errors import InputError
from stages.core.files import FileFormatError
from stages.core.predictions import read_predictions
from tests.helpers.prediction_tables import CLASSES, DESCRIPTION, EPS, make_project
from tests.helpers.reports import evaluation_context
from tests.helpers.repository import ROOT, paths_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DECLARED = [
    Path(path) for path in paths_of(STAGES["evaluate"]["plots"])
]  # what the stage writes, by dvc.yaml
PNGS = {path.stem for path in DECLARED if path.suffix == ".png"}
CSVS = {path.stem for path in DECLARED if path.suffix == ".csv"}


def make_evaluate_project(folder: Path, monkeypatch, norm="linf", **options) -> Path:
    """What the stage reads, in the current folder."""
    folder.mkdir(exist_ok=True)
    make_project(folder, **options)
    params = (ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false")
    params = params.replace("bootstrap: 2000", "bootstrap: 200").replace("eps: 4/255", "eps: 8/255")
    (folder / "params.yaml").write_text(params.replace("norm: linf", f"norm: {norm}"))
    monkeypatch.chdir(folder)
    return folder


def written_files(folder: Path) -> dict[str, bytes]:
    files = [
        *folder.glob("plots/*"),
        *folder.glob("metrics/[!d]*"),
        folder / "metrics/diagnostics.json",
        folder / "data/report.html",
        folder / "data/model_card.md",
    ]
    return {file.name: file.read_bytes() for file in sorted(files)}


def parse_strictly(text: str) -> dict:
    """JSON without NaN or infinity, with sorted keys."""

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert text == json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return content


def without_images(html: str) -> str:
    return re.sub(r"base64,[^\"]*", "", html)


def test_stage_writes_the_declared_files_and_the_same_bytes_twice(tmp_path, monkeypatch, capsys):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, size=32)
    result = evaluate.main()
    first = written_files(folder)
    assert parse_strictly(first["evaluate.json"].decode()) == result
    assert {
        "clean",
        "adv",
        "difference",
        "n",
        "groups",
        "eps",
        "majority_rate",
        "prior_log_loss",
    } == set(result)
    pngs, csvs = PNGS | set(evaluate.SHEETS), CSVS | {"training_clean", "training_adv"}
    documents = {"evaluate.json", "diagnostics.json", "report.html", "model_card.md"}
    assert (
        set(first)
        == {f"{name}.png" for name in pngs} | {f"{name}.csv" for name in csvs} | documents
    )
    for name in PNGS:
        assert len(first[f"{name}.png"]) < MAX_PNG_BYTES <= 100_000
        with Image.open(folder / f"plots/{name}.png") as image:
            assert not image.info
            image.verify()
    assert "Standard training" in capsys.readouterr().out
    html = without_images(first["report.html"].decode())
    for text in ("tmp", f"{datetime.now():%Y}", str(tmp_path)):
        assert text not in html
    assert f"{DESCRIPTION['sha256'][:16]}…" in html
    evaluate.main()
    assert written_files(folder) == first


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    """The notes in the corners of the figures, which are not rendered: that takes most of the time."""
    collected = []
    for module in (figures, image_figures):
        monkeypatch.setattr(
            module, "render_png", lambda figure, note="": collected.append(note) or b"not rendered"
        )
    return collected


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_is_named_in_every_figure(tmp_path, monkeypatch, notes, synthetic):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, size=16, n=20, synthetic=synthetic)
    evaluate.main()
    assert len(notes) == len(PNGS) + 3  # three stand in the report only
    assert {"synthetic" in note for note in notes} == {synthetic}
    captions = re.findall(
        r"<figcaption>.*?</figcaption>", (folder / "data/report.html").read_text(), re.DOTALL
    )
    assert len(captions) == len(PNGS) + 3 + len(evaluate.SHEETS)
    assert {"synthetic" in caption.lower() for caption in captions} == {synthetic}


def test_transfer_attack_counts_in_the_worst_case(tmp_path, monkeypatch):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, size=16, n=30, always="correct")
    file = folder / "data/predictions/adv/transfer.csv"
    transfer = pd.read_csv(file)
    wrong = transfer["label"].map({"Type_1": "Type_2", "Type_2": "Type_3", "Type_3": "Type_1"})
    transfer.assign(prediction=wrong, margin=-9.0).to_csv(file, index=False)
    inputs = evaluate.load_inputs()
    images = select_predictions(inputs["clean"].predictions)
    context = evaluation_context(images)
    tables = evaluate.compute_tables(inputs, context)
    for model in ("clean", "adv"):
        metrics = evaluate.compute_metrics(inputs, images, tables, context)[model]
        assert metrics["robust_accuracy"]["transfer"] == 0
        assert metrics["attacked_images"]["transfer"] == 30
        assert metrics["robust_accuracy"]["pgd"] == 1
        assert metrics["robust_accuracy_worst"] == 0


def test_attack_configurations_are_distinct_and_count_their_images(tmp_path, monkeypatch):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, size=16, n=30)
    rows = evaluate.attack_configurations(evaluate.load_inputs(), "linf").set_index("label")
    assert rows.loc["PGD", "budgets"] == "0.25/255, 0.5/255, 1/255, 2/255, 4/255, 8/255"
    assert rows.loc["PGD", "n"] == 30
    assert rows.loc["Ensemble (apgd)", "n"] == rows.loc["Transfer (PGD)", "n"] == 30
    assert (rows["models"] == "clean, adv").all()
    table = read_predictions(folder / "data/predictions/clean")
    assert set(rows["attack"]) == {*table["attack"], "transfer", "universal_transfer"} - {"none"}


def test_steps_of_an_attack_are_those_at_the_main_eps(tmp_path, monkeypatch):
    make_evaluate_project(tmp_path / "p", monkeypatch, size=16, n=30)
    inputs = evaluate.load_inputs()
    table = inputs["clean"].predictions
    table.loc[(table["attack"] == "pgd") & (table["eps"] < 0.9 * EPS), "steps"] = 50
    assert evaluate.gradient_steps(inputs, EPS)["pgd"] == 20


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["adv"], "n": 30, "fractions": (0.5, 0.5, 0)},
        {"n": 1},
        {"n": 40, "per_group": 4, "classes": ("a", "b"), "fractions": (0.4, 0.6)},
        {"n": 12, "always": "correct"},  # a perfect model, also under attack
        {"n": 12, "always": "wrong"},
        {"n": 12, "always": "first"},  # a constant model
        {"n": 8, "per_group": 8},  # all of one patient
        {"n": 30, "norm": "l2"},
    ],
    ids=str,
)
def test_stage_runs_on_degenerate_data(tmp_path, monkeypatch, options):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, size=16, **options)
    evaluate.main()
    assert not re.search(
        r"\bnan\b|\binf\b|\bNone\b", without_images((folder / "data/report.html").read_text())
    )
    parse_strictly((folder / "metrics/evaluate.json").read_text())
    for name in CSVS:
        assert not pd.read_csv(folder / f"plots/{name}.csv").isna().any(axis=None)


def test_missing_predictions_are_an_error(tmp_path, monkeypatch):
    make_evaluate_project(tmp_path / "p", monkeypatch, models=[])
    with pytest.raises(InputError, match="expected predictions of clean or adv, got none"):
        evaluate.main()


def test_missing_model_description_is_an_error_naming_the_file(tmp_path, monkeypatch):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, n=10, size=16)
    (folder / "data/predictions/adv/model.json").unlink()
    with pytest.raises(
        FileFormatError, match=r"adv.model\.json: expected a file written by attack_eval, got none"
    ):
        evaluate.main()


def test_evaluate_needs_neither_torch_nor_mlflow():
    code = (
        "import sys, stages.evaluate; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_the_figures_import_matplotlib():
    importing = set()
    for file in [ROOT / "stages/evaluate.py", *(ROOT / "stages/evaluation").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            importing |= {file.name for name in names if name.split(".")[0] == "matplotlib"}
    assert importing == {"figures.py", "image_figures.py", "style.py"}


def charts_of(html: str) -> list[dict]:
    return [
        json.loads(spec)
        for spec in re.findall(r"var spec = (\{.*?\});\s*vegaEmbed", html, re.DOTALL)
    ]


@pytest.mark.skipif(
    not (shutil.which("git") and (Path(sys.executable).parent / "dvc").exists()),
    reason="needs git and dvc",
)
def test_dvc_plots_diff_draws_every_chart(tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    folder.mkdir()
    # Without the user's git and DVC settings and hooks.
    env = os.environ | {
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path),
    }

    def call(*command: str) -> None:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr

    dvc = (sys.executable, "-m", "dvc")
    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    entries = [plot for stage in STAGES.values() for plot in stage.get("plots", ())]
    plots = [
        {plot: {"cache": False}} if isinstance(plot, str) else plot for plot in entries
    ]  # all of them in git
    (folder / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"evaluate": {"cmd": "unused", "plots": plots}}})
    )
    tables = {}
    for rev, n in (("first", 40), ("second", 80)):
        project = make_evaluate_project(tmp_path / rev, monkeypatch, n=n, size=16)
        evaluate.main()
        shutil.copytree(project / "plots", folder / "plots", dirs_exist_ok=True)
        tables[rev] = pd.read_csv(project / "plots/confusion.csv", dtype=str)
        call("git", "add", "-A")
        call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", rev)
        call("git", "tag", rev)
    call(*dvc, "plots", "diff", "first", "second", "-o", "page")
    html = (folder / "page/index.html").read_text()
    assert "<DVC_METRIC" not in html
    drawn = {spec["title"]["text"]: spec for spec in charts_of(html)}
    tables_of = {
        options["title"]: path
        for plot in plots
        for path, options in plot.items()
        if path.endswith(".csv")
    }
    assert set(drawn) == set(tables_of)
    for title, spec in drawn.items():
        rows = pd.DataFrame(spec["data"]["values"])
        assert set(rows["rev"]) == {"first", "second"}
        # Every row of each revision; the second one is what lies in the folder.
        assert len(rows[rows["rev"] == "second"]) == len(pd.read_csv(folder / tables_of[title]))
        assert "NaN" not in (svg := vl_convert.vegalite_to_svg(spec, vl_version="5.8"))
        assert len(re.findall(r"<path|<text", svg)) > 20, title
    assert html.count("<img") == 2 * sum(path.endswith(".png") for path in paths_of(plots))
    # Each cell is drawn from exactly one row, without aggregation.
    confusion = drawn["Confusion matrix"]
    assert not re.search("aggregate|impute|joinaggregate", json.dumps(confusion))
    cells = pd.DataFrame(confusion["data"]["values"])
    keys = ["model", "attack", "actual", "predicted"]
    assert not cells.duplicated([*keys, "rev"]).any()
    for rev, table in tables.items():
        of_rev = cells[cells["rev"] == rev].set_index(keys)["count"]
        assert (
            of_rev.sort_index()
            .astype(str)
            .equals(table.set_index(keys)["count"].sort_index().astype(str))
        )
        assert len(of_rev) == 4 * len(CLASSES) ** 2


@pytest.mark.usefixtures("notes")
def test_strict_ends_with_an_error_after_everything_is_written(tmp_path, monkeypatch, capsys):
    folder = make_evaluate_project(tmp_path / "p", monkeypatch, n=30, size=16)
    evaluate.main()
    checks = parse_strictly((folder / "metrics/diagnostics.json").read_text())
    assert set(checks) == {"clean", "adv"}
    assert {"D2", "D5", "D8", "D9", "D11", "D17", "D27"} <= set(checks["adv"])
    assert checks["adv"]["D5"] == {
        "verdict": "WARN",
        "value": 0.05,
        "threshold": "> 0.01 WARN, > 0.1 FAIL; n ≥ 300",
        "n": 16,
        "name": "Images with zero input gradient",
    }
    assert checks["adv"]["D12"]["verdict"] == INCONCLUSIVE
    assert "[WARN] D5 Images with zero input gradient: 0.05 (n = 16)" in capsys.readouterr().out

    file = folder / "data/predictions/adv/diagnostics.json"
    file.write_text(json.dumps([vars(grade("D2", 1.0, 16, fail=0))]))
    evaluate.main()  # without strict a FAIL is reported, and the stage succeeds
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("strict: false", "strict: true"))
    report = folder / "data/report.html"
    report.unlink()
    with pytest.raises(
        InputError, match=r"evaluate\.strict: expected no diagnostic that says FAIL, got adv D2"
    ):
        evaluate.main()
    assert report.exists()
