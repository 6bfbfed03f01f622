"""dvc.yaml declares what the stages import, read and write: DVC itself doesn't follow imports."""

import ast
import importlib
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from stages.core.params import Params
from tests.helpers.repository import ROOT, paths_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# These can't change an output: they log after the outputs stand, check values that are declared key
# by key, or tell where a process runs and when it ends.
EXEMPT = {
    "stages/tracking/stage_logging.py",
    "stages/core/params.py",
    "stages/core/params_file.py",
    "stages/core/processes.py",
    "stages/core/sweeps.py",
}


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


def imported_files(file: Path) -> set[str]:
    """The file and all that it imports, directly or not."""
    seen, pending = set(), [file]
    while pending:
        current = pending.pop()
        relative = current.relative_to(ROOT).as_posix()
        if relative not in seen:
            seen.add(relative)
            # What only an exempt file imports can't change an output either.
            pending += [] if relative in EXEMPT else imports(current)
    return seen


def declared_code(stage: str) -> set[str]:
    """Files of the declared code; a folder stands for all that is in it."""
    code = [ROOT / dep for dep in paths_of(STAGES[stage]["deps"]) if dep.startswith("stages/")]
    files = [file for path in code for file in (path.rglob("*") if path.is_dir() else [path])]
    return {
        f.relative_to(ROOT).as_posix()
        for f in files
        if f.is_file() and "__pycache__" not in f.parts and f.stat().st_size
    }


def is_package_docstring(path: str) -> bool:
    return path.endswith("__init__.py")


@pytest.mark.parametrize("stage", STAGES)
def test_imported_code_is_declared(stage):
    assert imported_files(ROOT / f"stages/{stage}.py") - EXEMPT <= declared_code(stage)


@pytest.mark.parametrize("stage", ["preprocess", "train_clean", "train_adv"])
def test_declared_but_unused_code_retrains_no_model(stage):
    unused = {
        path
        for path in declared_code(stage) - imported_files(ROOT / f"stages/{stage}.py")
        if not is_package_docstring(path)
    }
    # A file that training the clean model depends on reruns what follows it anyway.
    assert unused <= imported_files(ROOT / "stages/train_clean.py")


def test_packages_re_export_nothing():
    for file in (ROOT / "stages").rglob("__init__.py"):
        docstring, *rest = ast.parse(file.read_text()).body
        assert isinstance(docstring, ast.Expr), file
        assert not rest or file.parent.name == "stages", (
            file
        )  # which says what signals do while a stage imports
        assert not imports(file)


def declared_keys(section: type[BaseModel], whole: type[BaseModel]) -> set[str]:
    """What dvc.yaml calls the fields of ``section``.

    The name of each that ``whole`` has alike, else its keys one by one.
    """
    keys = set()
    for name, field in section.model_fields.items():
        if field.annotation is whole.model_fields[name].annotation:
            keys.add(name)
        else:
            keys |= {
                f"{name}.{key}"
                for key in declared_keys(field.annotation, whole.model_fields[name].annotation)
            }
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_those_read(stage):
    read = declared_keys(importlib.import_module(f"stages.{stage}").Params, Params)
    assert set(STAGES[stage]["params"]) == read - {"runtime"}


def test_no_module_imports_a_stage():
    for file in (ROOT / "stages").rglob("*.py"):
        stages = {ROOT / f"stages/{stage}.py" for stage in STAGES}
        assert not imports(file) & stages, file


def test_rewording_the_report_attacks_nothing_again():
    reached = imported_files(ROOT / "stages/attack_eval.py")
    assert not any(file.startswith("stages/report") for file in reached)


def test_dvc_yaml_reads_like_a_table_of_contents():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 160


def test_standard_training_depends_on_no_evaluation_attack_or_eps():
    reached = imported_files(ROOT / "stages/train_clean.py")
    assert {file for file in reached if "attacks/" in file} == {"stages/attacks/gradient.py"}
    assert not any("measurements/" in file for file in reached)
    assert not any(key.startswith("attack") for key in STAGES["train_clean"]["params"])


SHOW_PHOTOGRAPHS = (
    "rejected",
    "duplicates",
    "crops",
    "classes",
    "examples_clean",
    "examples_adv",
    "gradients",
    "universal",
)
PHOTOGRAPHS = {f"plots/{name}.png" for name in SHOW_PHOTOGRAPHS}


def test_only_metrics_and_charts_are_uncached():
    # `cache: false` under outs would switch the run cache off for the whole stage, so that `make
    # reset` would compute it again; metrics and plots don't.
    cached = set()
    for stage in STAGES.values():
        assert all(isinstance(out, str) for out in stage["outs"])
        for entry in stage.get("metrics", []) + stage.get("plots", []):
            if isinstance(entry, str):
                cached.add(entry)
            else:
                assert next(iter(entry.values()))["cache"] is False
    assert cached == PHOTOGRAPHS, "git must not contain the user's photographs"
