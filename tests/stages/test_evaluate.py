"""The stage as a whole: what it writes, that it writes the same twice, and that DVC draws it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import vl_convert
import yaml
from PIL import Image

from stages import evaluate
from stages.core.errors import InputError
from stages.core.predictions import PredictionsError
from stages.evaluation.diagnostics import judge
from tests.helpers.prediction_tables import CLASSES, make_project
from tests.helpers.repository import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DECLARED = [Path(path) for plot in STAGES["evaluate"]["plots"] for path in plot]  # by dvc.yaml, as what the stage writes
PNGS = {path.stem for path in DECLARED if path.suffix == ".png"}
CSVS = {path.stem for path in DECLARED if path.suffix == ".csv"}


def project(folder: Path, monkeypatch, norm="linf", **options) -> Path:
    folder.mkdir(exist_ok=True)
    make_project(folder, **options)
    params = (ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false")
    params = params.replace("bootstrap: 2000", "bootstrap: 200").replace("eps: 4/255", "eps: 8/255")
    (folder / "params.yaml").write_text(params.replace("norm: linf", f"norm: {norm}"))
    monkeypatch.chdir(folder)
    return folder


def written(folder: Path) -> dict[str, bytes]:
    files = [
        *folder.glob("plots/*"),
        *folder.glob("metrics/[!d]*"),
        folder / "metrics/diagnostics.json",
        folder / "data/report.html",
    ]
    return {file.name: file.read_bytes() for file in sorted(files)}


def finite_and_sorted(text: str) -> dict:
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    return content


def test_stage_writes_everything_twice_the_same(tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "p", monkeypatch, size=32)
    result = evaluate.main()
    first = written(folder)
    assert finite_and_sorted(first["evaluate.json"].decode()) == result
    assert {"clean", "adv", "difference", "n", "groups", "eps", "majority_rate", "prior_log_loss"} == set(result)
    assert set(first) == {f"{n}.png" for n in PNGS | set(evaluate.SHEETS)} | {
        f"{n}.csv" for n in CSVS | {"training_clean", "training_adv"}
    } | {
        "evaluate.json",
        "diagnostics.json",
        "report.html",
    }
    for name in PNGS:
        assert len(first[f"{name}.png"]) < 100_000
        with Image.open(folder / f"plots/{name}.png") as image:
            assert not image.info
            image.verify()
    assert "clean training" in capsys.readouterr().out
    for name in (b"tmp", b"2026", str(tmp_path).encode()):
        assert name not in re.sub(rb"base64,[^\"]*", b"", first["report.html"]), name
    evaluate.main()
    assert written(folder) == first


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["adv"], "n": 30, "shares": (0.5, 0.5, 0)},
        {"n": 1},
        {"n": 40, "per_group": 4, "classes": ("a", "b"), "shares": (0.4, 0.6)},
        {"n": 12, "always": "right"},  # a perfect model, whatever is tried
        {"n": 12, "always": "wrong"},
        {"n": 12, "always": "first"},  # a constant model
        {"n": 8, "per_group": 8},  # all of one patient
        {"n": 30, "norm": "l2"},
    ],
    ids=str,
)
def test_stage_stands_where_there_is_little_to_say(tmp_path, monkeypatch, options):
    folder = project(tmp_path / "p", monkeypatch, size=16, **options)
    evaluate.main()
    text = re.sub(r"base64,[^\"]*", "", (folder / "data/report.html").read_text())
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)
    finite_and_sorted((folder / "metrics/evaluate.json").read_text())
    for name in CSVS:
        assert not pd.read_csv(folder / f"plots/{name}.csv").isna().any(axis=None)


def test_nothing_to_evaluate_is_said(tmp_path, monkeypatch):
    project(tmp_path / "p", monkeypatch, models=[])
    with pytest.raises(PredictionsError, match="expected predictions of clean or adv, got none"):
        evaluate.main()


def test_evaluate_needs_neither_torch_nor_mlflow():
    code = "import sys, stages.evaluate; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_figures_imports_matplotlib_of_all_that_evaluate_reads():
    for file in [ROOT / "stages/evaluate.py", *(ROOT / "stages/evaluation").glob("*.py")]:
        imported = {
            name.name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert file.name == "figures.py" or "matplotlib" not in imported, file


def charts(html: str) -> list[dict]:
    return [json.loads(spec) for spec in re.findall(r"var spec = (\{.*?\});\s*vegaEmbed", html, re.DOTALL)]


@pytest.mark.skipif(not (shutil.which("git") and (Path(sys.executable).parent / "dvc").exists()), reason="needs git and dvc")
def test_dvc_plots_diff_draws_every_chart(tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    folder.mkdir()
    # Nothing of the user's git or DVC settings, and no hook, takes part.
    env = os.environ | {
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path),
    }

    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    dvc = (sys.executable, "-m", "dvc")
    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    plots = [plot for stage in STAGES.values() for plot in stage.get("plots", ())]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": {"cmd": "unused", "plots": plots}}}))
    tables = {}
    for rev, n in (("one", 40), ("two", 80)):
        made = project(tmp_path / rev, monkeypatch, n=n, size=16)
        evaluate.main()
        shutil.copytree(made / "plots", folder / "plots", dirs_exist_ok=True)
        tables[rev] = pd.read_csv(made / "plots/confusion.csv", dtype=str)
        call("git", "add", "-A")
        call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", rev)
        call("git", "tag", rev)
    call(*dvc, "plots", "diff", "one", "two", "-o", "page")
    html = (folder / "page/index.html").read_text()
    assert "<DVC_METRIC" not in html
    drawn = {spec["title"]["text"]: spec for spec in charts(html)}
    tables_of = {options["title"]: path for plot in plots for path, options in plot.items() if path.endswith(".csv")}
    assert set(drawn) == set(tables_of)
    for title, spec in drawn.items():
        rows = pd.DataFrame(spec["data"]["values"])
        assert set(rows["rev"]) == {"one", "two"}
        # Of each revision every row: the fixture's second one is what lies in the folder.
        assert len(rows[rows["rev"] == "two"]) == len(pd.read_csv(folder / tables_of[title]))
        assert "NaN" not in (picture := vl_convert.vegalite_to_svg(spec, vl_version="5.8"))
        assert len(re.findall(r"<path|<text", picture)) > 20, title
    assert html.count("<img") == 2 * sum(path.endswith(".png") for plot in plots for path in plot)
    # A cell is drawn from exactly one row: the counts of that revision, no sorting or summing on the way.
    confusion = drawn["What is taken for what"]
    assert not re.search("aggregate|impute|joinaggregate", json.dumps(confusion))
    cells = pd.DataFrame(confusion["data"]["values"])
    keys = ["model", "attack", "actual", "predicted"]
    assert not cells.duplicated([*keys, "rev"]).any()
    for rev, table in tables.items():
        of_rev = cells[cells["rev"] == rev].set_index(keys)["count"]
        assert of_rev.sort_index().astype(str).equals(table.set_index(keys)["count"].sort_index().astype(str))
        assert len(of_rev) == 4 * len(CLASSES) ** 2


def test_strict_ends_with_an_error_after_everything_is_written(tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "p", monkeypatch, size=32)
    evaluate.main()
    found = finite_and_sorted((folder / "metrics/diagnostics.json").read_text())
    assert set(found) == {"clean", "adv"}
    assert {"D2", "D5", "D8", "D9", "D11", "D17", "D27"} <= set(found["adv"])
    assert found["adv"]["D5"] == {
        "verdict": "WARN",
        "value": 0.05,
        "threshold": "> 0.01 WARN, > 0.1 FAIL",
        "n": 16,
        "name": "pictures without a gradient",
    }
    assert found["adv"]["D12"]["verdict"] == "not enough to say"
    assert "[WARN] D5 pictures without a gradient: 0.05 (n = 16)" in capsys.readouterr().out

    file = folder / "data/predictions/adv/diagnostics.json"
    file.write_text(json.dumps([vars(judge("D2", 1.0, 16, fail=0))]))
    evaluate.main()  # a FAIL is said, and the stage ends well unless it is to be strict
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("strict: false", "strict: true"))
    report = folder / "data/report.html"
    report.unlink()
    with pytest.raises(InputError, match=r"attack_eval\.strict: expected no diagnostic that says FAIL, got adv D2"):
        evaluate.main()
    assert report.exists()
