"""Which code, versions and device a result comes from, as tags; and since when it is computed."""

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata

from stages.core.params_file import load_params

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "dvc", "mlflow")
START = int(time.time() * 1000)  # of this process, about, in ms: every stage imports this module
CODE = ("stages", "dvc.yaml", "requirements.txt")  # what may be uncommitted; params are logged


def code_tags(source: str) -> dict[str, str]:
    """The file that a run is of, the commit, and which files of the code differ from it."""
    changes = git("status", "--porcelain", "--", *CODE).splitlines()
    return {
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git("rev-parse", "HEAD") or "unknown",
        "git.uncommitted": ", ".join(change[3:] for change in changes) or "none",
    }


def git(*args: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    command = ["git", *args]
    try:
        return subprocess.check_output(  # noqa: S603
            command, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).rstrip()
    except (OSError, subprocess.SubprocessError):
        return ""


def environment_tags() -> dict[str, str]:
    """Versions and device of this process."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # DVC may be installed elsewhere
            tags[f"version.{package}"] = metadata.version(package)
    device = f"cpu, {os.cpu_count()} cores, {platform.machine()}"
    # Only a stage with networks has imported this.
    if devices := sys.modules.get("stages.core.devices"):
        device = devices.describe_machine(load_params().runtime)
    return {**tags, "device": device}
