"""Run the whole pipeline small, in a clone of its own: a first look that changes no result here.

Run: python -m tools.quick

The clone is .quick, with the keys of params.quick.yaml over those of params.yaml. It is made anew
each time, from the last commit; photographs that git doesn't have are read where they lie. The run
is committed there, so that experiments in the clone, which are as quick, are compared with it.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stages.core.processes import run_cli
from tools.queue import PATHS, WORDS, in_git

FOLDER = Path(".quick")
AUTHOR = ["-c", "user.name=make quick", "-c", "user.email=quick@localhost"]


def merged(params: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The parameters with other values for some keys, also within sections."""
    result = dict(params)
    for key, value in changes.items():
        result[key] = merged(params[key], value) if isinstance(value, dict) else value
    return result


def findable(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with absolute paths to what the clone lacks."""
    result = params
    for key in PATHS:
        section, name = key.split(".")
        path = params[section][name]
        if path not in WORDS and not in_git(Path(path)):
            result = merged(result, {section: {name: str(Path(path).absolute())}})
    return result


def main() -> None:
    """Clone, set the parameters, run."""
    params, changes = (
        yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        for name in ("params.yaml", "params.quick.yaml")
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    clone = ["git", "clone", "-q", ".", str(FOLDER)]
    subprocess.run(clone, check=True)  # noqa: S603
    small = findable(merged(params, changes))
    text = yaml.safe_dump(small, sort_keys=False, allow_unicode=True)
    (FOLDER / "params.yaml").write_text(text, encoding="utf-8")
    repro = subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=FOLDER, check=False)
    if repro.returncode:  # the stage and DVC have said why
        sys.exit(repro.returncode)
    commit = ["git", *AUTHOR, "commit", "-qam", "Run the pipeline small"]
    subprocess.run(commit, cwd=FOLDER, check=True)  # noqa: S603
    print(f"cd {FOLDER} && make report; the run is too small for its numbers to count")


if __name__ == "__main__":
    run_cli(main)
