"""Say whether this run reproduces the committed one.

Run: python -m tools.check

Compares metrics/evaluate.json with that of the last commit. Another processor trains another model,
so equal numbers aren't expected: a headline is reproduced if it lies in the confidence interval of
the committed one. Exits with status 1 if one doesn't.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import InputError
from stages.core.files import md5
from stages.core.paths import METRICS
from stages.core.processes import run_cli
from stages.report.formatting import MODEL_LABELS, metric
from stages.report.headlines import HEADLINES

EVALUATION, LOCK = METRICS / "evaluate.json", Path("dvc.lock")


def main() -> bool:
    """Print a line for each headline; returns whether all are reproduced.

    Raises:
        InputError: when there is no complete run, or none with the committed parameters.
    """
    lock = LOCK.read_bytes()
    here, there = (yaml.safe_load(text)["stages"]["evaluate"] for text in (lock, committed(LOCK)))
    for out in here["outs"]:
        path = Path(out["path"])
        if not path.exists() or digest(path) != out["md5"]:
            raise InputError(f"{path}: expected the file of a complete run, got none: `dvc repro`")
    if here["params"] != there["params"]:
        raise InputError(
            "params.yaml: expected a run with the committed parameters, got others: `make reset`"
        )
    evaluation = EVALUATION.read_bytes()
    lines = compare(json.loads(committed(EVALUATION)), json.loads(evaluation))
    print("\n".join(lines))
    missed = sum(line.endswith("no") for line in lines)
    if evaluation == committed(EVALUATION):
        print("reproduced: the same bytes as the committed run")
    elif not missed:
        print("reproduced: every headline lies in the interval of the committed run")
    else:
        print(f"not reproduced: {missed} of {len(lines) - 1} headlines lie outside the interval")
    return not missed


def digest(path: Path) -> str:
    """The MD5 that DVC gives an output: of a file, or of the list of a folder's files."""
    if path.is_file():
        return md5(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    listed = [{"md5": md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listed.sort(key=lambda entry: entry["relpath"])
    text = json.dumps(listed, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def compare(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A table: headline, committed value with its interval, value of this run, yes or no."""
    rows = [("", "committed", "this run", "reproduced")]
    for model, label in MODEL_LABELS.items():
        for name, words in HEADLINES.items():
            before, value = committed[model], found[model][name]
            is_inside = before[f"{name}_low"] <= value <= before[f"{name}_high"]
            cells = (metric(before, name), metric({name: value}, name))
            rows.append((f"{label}, {words}", *cells, "yes" if is_inside else "no"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def committed(file: Path) -> bytes:
    """The content of a file in the last commit."""
    command = ["git", "show", f"HEAD:./{file.as_posix()}"]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise InputError(f"{file}: expected it in the last commit, got: {done.stderr.decode()}")
    return done.stdout


if __name__ == "__main__":
    run_cli(lambda: sys.exit(not main()))
