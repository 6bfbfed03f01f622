"""The whole pipeline in unusual environments: it must give the same bytes, or be refused by name.

Run: make faults, or python -m tests.faults.environments
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.helpers.projects import make_project

ODD = "a b'ü→\N{RIGHT-TO-LEFT OVERRIDE}$(x)"


def repro(project: Path, *, umask: int = 0o022, **env: str | None) -> str:
    """``dvc repro`` from nothing; what it prints. A variable that is None is removed."""
    for name in (
        ".ckpt",
        ".cache",
        ".dvc/cache",
        ".dvc/tmp",
        "data/processed",
        "data/models",
        "data/predictions",
    ):
        shutil.rmtree(project / name, ignore_errors=True)
    settings = {**os.environ, "MLFLOW_TRACKING_URI": "", **env}
    settings = {name: value for name, value in settings.items() if value is not None}
    command = [sys.executable, "-m", "dvc", "repro", "-f"]
    done = subprocess.run(
        command, cwd=project, env=settings, capture_output=True, text=True, check=False, umask=umask
    )
    return (
        done.stdout
        + done.stderr
        + ("" if done.returncode == 0 else f"\nexit status {done.returncode}")
    )


def moved(pristine: Path, folder: Path) -> Path:
    """A copy somewhere else."""
    shutil.copytree(
        pristine, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts")
    )
    return folder


def git(project: Path, *command: str) -> None:
    subprocess.run(["git", *command], cwd=project, check=True, capture_output=True)


def in_odd_folder(pristine: Path, folder: Path) -> tuple[Path, str]:
    project = moved(pristine, folder / ODD)
    temporary = folder / f"tmp {ODD}"
    temporary.mkdir()
    return project, repro(project, TMPDIR=str(temporary))


def in_worktree(pristine: Path, folder: Path) -> tuple[Path, str]:
    git(moved(pristine, folder / "main"), "worktree", "add", "-q", "--detach", str(folder / "tree"))
    shutil.copytree(pristine / "data/few", folder / "tree/data/few", dirs_exist_ok=True)
    return folder / "tree", repro(folder / "tree")


def in_shallow_clone(pristine: Path, folder: Path) -> tuple[Path, str]:
    git(folder, "clone", "-q", "--depth", "1", f"file://{pristine}", "clone")
    return folder / "clone", repro(folder / "clone")


def without_git(pristine: Path, folder: Path) -> tuple[Path, str]:
    project = moved(pristine, folder / "plain")
    shutil.rmtree(project / ".git")
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return project, repro(project)


def with_settings(
    umask: int = 0o022, **env: str | None
) -> Callable[[Path, Path], tuple[Path, str]]:
    def run(pristine: Path, folder: Path) -> tuple[Path, str]:
        project = moved(pristine, folder / "project")
        return project, repro(project, umask=umask, **env)

    return run


ENVIRONMENTS: dict[str, Callable[[Path, Path], tuple[Path, str]]] = {
    "folder and TMPDIR with spaces, quotes, non-ASCII": in_odd_folder,
    "git worktree, detached HEAD": in_worktree,
    "shallow clone": in_shallow_clone,
    "no git": without_git,
    "LANG=C, no UTF-8 mode": with_settings(
        LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    ),
    "umask 077": with_settings(umask=0o077),
    "no HOME": with_settings(HOME=None),
}


def main(folder: Path) -> int:
    """Prints a line for each environment; returns how many gave other bytes or a traceback."""
    pristine = folder / "pristine"
    if not pristine.exists():
        make_project(pristine)
    git(pristine, "add", "-A")
    git(
        pristine,
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "commit",
        "-qm",
        "Results",
        "--allow-empty",
    )
    reference, failed = (pristine / "dvc.lock").read_bytes(), 0
    for number, (name, run) in enumerate(ENVIRONMENTS.items()):
        (place := folder / f"environment{number}").mkdir()
        project, output = run(pristine, place)
        same = (project / "dvc.lock").read_bytes() == reference
        good = same and "Traceback" not in output and "exit status" not in output
        failed += not good
        print(f"{name:50s} {'ok' if good else output[-2000:]}", flush=True)
        shutil.rmtree(place)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="where to work; kept. Default: a temporary folder"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(main((arguments.folder or Path(temporary)).resolve())))
