"""Run the whole pipeline small, in a clone of its own: a first look that changes no result here.

Run: python -m tools.quick

The clone is .quick, with the keys of params.quick.yaml over those of params.yaml. It is made anew
each time, from the last commit.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stages.core.processes import run_cli

FOLDER = Path(".quick")


def merged(params: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The parameters with other values for some keys, also within sections."""
    result = dict(params)
    for key, value in changes.items():
        result[key] = merged(params[key], value) if isinstance(value, dict) else value
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
    text = yaml.safe_dump(merged(params, changes), sort_keys=False, allow_unicode=True)
    (FOLDER / "params.yaml").write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=FOLDER, check=True)
    print(f"report: {FOLDER}/data/report.html")


if __name__ == "__main__":
    run_cli(main)
