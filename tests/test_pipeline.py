"""dvc.yaml tells the truth: DVC doesn't follow imports, so a test must."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# These two can't change an output: one logs after the outputs stand, the other checks values that are declared key by key.
EXEMPT = {"stages/core/tracking.py", "stages/core/params.py"}


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


@pytest.mark.parametrize("stage", STAGES)
def test_declared_code_is_the_imported_code(stage):
    declared = {dep for dep in names(STAGES[stage]["deps"]) if dep.endswith(".py")}
    assert declared == closure(ROOT / f"stages/{stage}.py") - EXEMPT


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
    assert "stages/core/attacks.py" not in reached
    assert not any(key.startswith("attack") for key in STAGES["train_clean"]["params"])


def test_only_metrics_and_plots_stay_out_of_the_cache():
    # `cache: false` under outs would switch the run cache off for the whole stage.
    for stage in STAGES.values():
        assert all(isinstance(out, str) for out in stage["outs"])
        for entry in stage.get("metrics", []) + stage.get("plots", []):
            assert next(iter(entry.values()))["cache"] is False
