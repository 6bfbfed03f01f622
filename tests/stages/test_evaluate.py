"""The stage as a whole: what it writes, the same bytes twice, and that DVC draws it."""

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

from stages import evaluate
from stages.core.errors import InputError
from tests.helpers.projects import set_params
from tests.helpers.reports import make_project
from tests.helpers.repository import ROOT, charts_of, paths_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DECLARED = {
    path for kind in ("outs", "metrics", "plots") for path in paths_of(STAGES["evaluate"][kind])
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def parse_strictly(text):
    """JSON without NaN or infinity, with sorted keys."""
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert text == json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return content


def test_stage_writes_the_declared_files_and_the_same_bytes_twice(project, capsys):
    make_project(n=12, size=16, examples=1)
    before = files_in(project)
    result = evaluate.main()
    first = files_in(project)
    written = first.keys() - before.keys()
    assert {
        next((p for p in DECLARED if Path(p) in Path(f).parents), f) for f in written
    } == DECLARED
    assert parse_strictly(first["metrics/evaluate.json"].decode()) == result
    for model, values in parse_strictly(first["metrics/headlines.json"].decode()).items():
        assert values.items() <= result[model].items()
    checks = parse_strictly(first["metrics/diagnostics.json"].decode())
    assert checks.keys() == {"clean", "adv"} <= result.keys()
    *_, last_but_one, last = capsys.readouterr().out.splitlines()
    assert last_but_one.startswith("verdict: ")
    assert "data/report.html" in last
    text = re.sub(r"base64,[^\"]*", "", first["data/report.html"].decode())
    assert not re.search(rf"{re.escape(str(project))}|20\d\d-\d\d-\d\d|\d\d:\d\d", text)
    evaluate.main()
    assert files_in(project) == first


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_is_named_in_every_figure_and_real_data_in_none(
    project, monkeypatch, synthetic
):
    notes = []
    monkeypatch.setattr("matplotlib.figure.Figure.supxlabel", lambda self, t, **_: notes.append(t))
    make_project(n=12, size=16, examples=1, data={"synthetic": synthetic})
    evaluate.main()
    html = Path("data/report.html").read_text()
    captions = re.findall(r"<figcaption>.*?</figcaption>", html, re.DOTALL)
    sheets = {"rejected", "duplicates", "crops"}  # by preprocess
    assert len(captions) - len(sheets) == len(notes) + (
        not synthetic
    )  # of which one says nothing else
    assert {"synthetic" in text.lower() for text in (*notes, *captions)} == {synthetic}
    assert ("<strong>Synthetic data.</strong>" in html) == synthetic


@pytest.mark.usefixtures("project")
def test_strict_ends_with_an_error_after_everything_is_written(capsys):
    make_project(n=12, size=16, examples=1)
    file = Path("data/predictions/adv/model_checks.csv")
    checks = pd.read_csv(file)
    checks.assign(value=1.0 * (checks["check"] == "looks_like_softmax")).to_csv(file, index=False)
    evaluate.main()  # without strict a FAIL is reported, and the stage succeeds
    assert "[FAIL] D2 " in capsys.readouterr().out
    set_params(Path("params.yaml"), **{"evaluate.strict": True})
    written = Path("data/model_card.md")
    written.unlink()
    with pytest.raises(InputError, match=r"evaluate\.strict: expected .* got (.*, )?adv D2"):
        evaluate.main()
    assert written.exists()


def test_evaluate_needs_neither_torch_nor_mlflow():
    code = "import sys, stages.evaluate; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_only_style_fonts_and_sections_import_matplotlib():
    for file in [ROOT / "stages/evaluate.py", *(ROOT / "stages/report").rglob("*.py")]:
        names = []
        for node in ast.walk(ast.parse(file.read_text())):
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "matplotlib" for name in names):
            drawing = file.name in ("style.py", "fonts.py") or file.parent.name == "sections"
            assert drawing, file


@pytest.mark.skipif(
    not (shutil.which("git") and (Path(sys.executable).parent / "dvc").exists()),
    reason="needs git and dvc",
)
def test_dvc_plots_diff_draws_every_chart(project, monkeypatch):
    # Without the user's git and DVC settings and hooks.
    env = os.environ | {"HOME": str(project), "DVC_SITE_CACHE_DIR": str(project)}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "DVC_NO_ANALYTICS": "1"}
    repo = project / "repo"
    repo.mkdir()

    def call(*command):
        done = subprocess.run(
            command, cwd=repo, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr

    dvc = (sys.executable, "-m", "dvc")
    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", repo / ".dvc/plots", dirs_exist_ok=True)
    entries = [plot for stage in STAGES.values() for plot in stage.get("plots", ())]
    plots = [{p: {"cache": False}} if isinstance(p, str) else p for p in entries]  # all in git
    stages = {"stages": {"evaluate": {"cmd": "unused", "plots": plots}}}
    (repo / "dvc.yaml").write_text(yaml.safe_dump(stages))
    for rev, n in (("first", 20), ("second", 40)):
        (project / rev).mkdir()
        monkeypatch.chdir(project / rev)
        make_project(n=n, size=16, examples=1)
        evaluate.main()
        shutil.copytree(project / rev / "plots", repo / "plots", dirs_exist_ok=True)
        call("git", "add", "-A")
        call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", rev)
        call("git", "tag", rev)
    call(*dvc, "plots", "diff", "first", "second", "-o", "page")
    html = (repo / "page/index.html").read_text()
    assert "<DVC_METRIC" not in html
    specs = re.findall(r"var spec = (\{.*?\});\s*vegaEmbed", html, re.DOTALL)
    drawn = {spec["title"]["text"]: spec for spec in map(json.loads, specs)}
    titles = charts_of(STAGES)
    assert drawn.keys() == titles.keys()
    for title, spec in drawn.items():
        rows = pd.DataFrame(spec["data"]["values"])
        for rev in ("first", "second"):
            table = pd.read_csv(project / rev / titles[title], keep_default_na=False)
            assert len(rows[rows["rev"] == rev]) == len(table), title
        svg = vl_convert.vegalite_to_svg(spec, vl_version="5.8")
        assert "NaN" not in svg
        assert len(re.findall(r"<path|<text", svg)) > 20, title
    assert html.count("<img") == 2 * sum(path.endswith(".png") for path in paths_of(plots))
    # Each cell is drawn from exactly one row, without aggregation.
    assert not re.search("aggregate|impute", json.dumps(drawn["Confusion matrix"]))
    cells = pd.DataFrame(drawn["Confusion matrix"]["data"]["values"])
    assert not cells.duplicated(["model", "attack", "actual", "predicted", "rev"]).any()
