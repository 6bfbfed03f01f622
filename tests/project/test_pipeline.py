"""dvc.yaml tells the truth: DVC doesn't follow imports, so a test must."""

import ast
from pathlib import Path

import pytest
import yaml

from tests.helpers.repository import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# These two can't change an output: one logs after the outputs stand, the other checks values that are declared key by key.
EXEMPT = {"stages/tracking/stage_logging.py", "stages/core/params.py"}


def module_file(name: str) -> Path | None:
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if path.exists() else None


def imports(file: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {path for name in names if (path := module_file(name))}
    return found


def closure(file: Path) -> set[str]:
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        relative = current.relative_to(ROOT).as_posix()
        if relative not in seen:
            seen.add(relative)
            # What an exempt file imports is imported for its sake only.
            todo += [] if relative in EXEMPT else imports(current)
    return seen


def names(entries: list) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def declared_code(stage: str) -> set[str]:
    """Files of the declared code; a folder stands for all that is in it."""
    code = [ROOT / dep for dep in names(STAGES[stage]["deps"]) if dep.startswith("stages/")]
    files = [file for path in code for file in (path.rglob("*") if path.is_dir() else [path])]
    return {f.relative_to(ROOT).as_posix() for f in files if f.is_file() and "__pycache__" not in f.parts and f.stat().st_size}


def is_package_docstring(path: str) -> bool:
    return path.endswith("__init__.py")


@pytest.mark.parametrize("stage", STAGES)
def test_imported_code_is_declared(stage):
    assert closure(ROOT / f"stages/{stage}.py") - EXEMPT <= declared_code(stage)


@pytest.mark.parametrize("stage", ["preprocess", "train_clean", "train_adv"])
def test_declared_code_beyond_the_imported_retrains_no_model(stage):
    unused = {path for path in declared_code(stage) - closure(ROOT / f"stages/{stage}.py") if not is_package_docstring(path)}
    # A file that training the clean model depends on reruns what follows it anyway.
    assert unused <= closure(ROOT / "stages/train_clean.py")


def test_packages_re_export_nothing():
    for file in (ROOT / "stages").rglob("__init__.py"):
        (docstring,) = ast.parse(file.read_text()).body
        assert isinstance(docstring, ast.Expr), file


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_ones_read(stage):
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "load_params"]
    assert len(calls) == 1
    read = {argument.value for argument in calls[0].args}
    assert set(STAGES[stage]["params"]) == read - {"runtime"}


def test_evaluate_needs_no_model():
    reached = closure(ROOT / "stages/evaluate.py") - EXEMPT
    for file in reached:
        assert not {"torch", "torchvision", "lightning_fabric"} & {
            (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }, f"{file} imports torch"


def test_no_stage_or_core_module_imports_a_stage():
    for file in (ROOT / "stages").rglob("*.py"):
        stages = {ROOT / f"stages/{stage}.py" for stage in STAGES}
        assert not imports(file) & stages, file


def test_training_the_clean_model_knows_no_attack_and_no_budget():
    reached = closure(ROOT / "stages/train_clean.py")
    assert "stages/attacks/suite.py" not in reached
    assert not any(key.startswith("attack") for key in STAGES["train_clean"]["params"])


def test_only_metrics_and_plots_stay_out_of_the_cache():
    # `cache: false` under outs would switch the run cache off for the whole stage.
    for stage in STAGES.values():
        assert all(isinstance(out, str) for out in stage["outs"])
        for entry in stage.get("metrics", []) + stage.get("plots", []):
            assert next(iter(entry.values()))["cache"] is False
