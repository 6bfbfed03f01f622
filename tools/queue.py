"""Refuse to queue experiments that can't find their files.

Run: python -m tools.queue

DVC runs queued experiments in a copy of what git or DVC tracks. A relative path to anything else,
such as photographs in data/raw, leads nowhere there; an absolute path is the same everywhere.
"""

import subprocess
from pathlib import Path

from stages.core.errors import InputError
from stages.core.params_file import flatten, load_params
from stages.core.processes import run_cli

PATHS = ("data.source", "data.label_fixes", "model.weights", "attack_eval.surrogate")
WORDS = ("none", "imagenet")  # values of these that are no paths


def main() -> None:
    """Check params.yaml.

    Raises:
        InputError: a line for each path that an experiment would not find.
    """
    params = flatten(load_params())
    lines = []
    for key in PATHS:
        path = Path(params[key])
        is_file = params[key] not in WORDS and not path.is_absolute()
        if is_file and not in_git(path) and not in_dvc(path):
            lines.append(
                f"{key}: expected an absolute path, as git tracks none of {path} and queued "
                f"experiments run in a copy of tracked files, got {path}: write {path.absolute()}"
            )
    if lines:
        raise InputError("\n".join(lines))


def in_dvc(path: Path) -> bool:
    """Whether DVC has the file or a folder above it."""
    return any(Path(f"{parent}.dvc").is_file() for parent in (path, *path.parents))


def in_git(path: Path) -> bool:
    """Whether git has the file, or files in the folder."""
    # Outside the repository git prints an error instead of files.
    command = ["git", "ls-files", "--", path]
    return bool(subprocess.run(command, capture_output=True, check=False).stdout)  # noqa: S603


if __name__ == "__main__":
    run_cli(main)
