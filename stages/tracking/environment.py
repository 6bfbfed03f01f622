"""Which code, which versions and which device a result comes from, as tags."""

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata

from stages.core.params_file import load_params

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "dvc", "mlflow")
CODE = (
    "stages",
    "dvc.yaml",
    "requirements.txt",
)  # what "uncommitted" is about: params have a place, results always differ


def _git(*args: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *args],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,  # noqa: S607
        )
        return done.stdout.rstrip()
    except (OSError, subprocess.SubprocessError):
        return ""


def code_tags() -> dict[str, str]:
    """Which code this is, as tags."""
    dirty = ", ".join(line[3:] for line in _git("status", "--porcelain", "--", *CODE).splitlines())
    return {
        "mlflow.source.git.commit": _git("rev-parse", "HEAD") or "unknown",
        "git.uncommitted": dirty or "none",
    }


def environment_tags() -> dict[str, str]:
    """Versions and device of this process, as tags."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            tags[f"version.{package}"] = metadata.version(package)
    torch = sys.modules.get("torch")  # a stage that never imported it ran on the CPU
    cpu = torch.cpu.get_capabilities().get("cpu_name", "cpu") if torch else "cpu"
    tags["device"] = f"{cpu}, {os.cpu_count()} cores, {platform.machine()}"
    if torch and load_params().runtime.device != "cpu" and torch.cuda.is_available():
        tags["device"] = torch.cuda.get_device_name()
    return tags
