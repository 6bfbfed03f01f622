"""The stage as a whole: what it writes, the same bytes twice, and that DVC draws it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages import evaluate
from stages.core.errors import InputError
from tests.helpers.projects import set_params
from tests.helpers.reports import make_project
from tests.helpers.repository import ROOT, paths_of

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


@pytest.mark.usefixtures("drawn")
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


@pytest.mark.usefixtures("project", "drawn")
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
