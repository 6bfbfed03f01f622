"""A clone of this repository whose pipeline runs in a minute: few images, few steps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.helpers.params import write_params
from tests.helpers.repository import ROOT

QUICK = yaml.safe_load((ROOT / "params.quick.yaml").read_text(encoding="utf-8"))
SMALL_PARAMS = {
    f"{name}.{key}": value for name, keys in QUICK.items() for key, value in keys.items()
}
SMALL_PARAMS |= {
    "data.source": "data/few",
    "data.groups": "none",
    "data.max_rejected": 0.2,
    "train_adv.epochs": 1,
    "attack_eval.subset": 6,
    "evaluate.bootstrap": 100,
    "runtime.device": "cpu",
    "runtime.tracking": True,
}


def write_images(folder: Path) -> None:
    """24 images of each of three classes, which differ in one color channel, and an empty file."""
    rng = np.random.default_rng(0)
    for kind in range(3):
        (folder / f"Type_{kind + 1}").mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[:, :, kind] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"Type_{kind + 1}/{i}.jpg")
    (folder / "Type_1/empty.jpg").touch()


def set_params(file: Path, **values) -> None:
    """Change existing keys of a params file; keys are dotted."""
    params = yaml.safe_load(file.read_text())
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        node = params[section] if section else params
        assert name in node, key
        node[name] = value
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def run(*command, cwd, code=0, **env) -> str:
    """What a command prints; checks whether it fails (``code`` not 0)."""
    command = [sys.executable, "-m", "dvc", *command[1:]] if command[0] == "dvc" else list(command)
    identity = {
        f"GIT_{role}_{key}": "test@localhost"
        for role in ("AUTHOR", "COMMITTER")
        for key in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # MLflow's default settings, whoever runs the tests.
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": "",
        **identity,
        "PATH": path,
        # A worker process of pytest has one thread: more would wait for those of the others.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        **env,
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == (code != 0), (
        f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout + done.stderr


def executed_stages(output: str) -> list[str]:
    """The stages that DVC ran, by what it printed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def make_project(folder: Path) -> None:
    """A clone with few images, in which ``dvc repro`` has run; its results are not committed."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    # With the uncommitted changes, so that they are tested, too.
    for command in (
        ["diff", "--name-only", "--no-renames", "HEAD"],
        ["ls-files", "--others", "--exclude-standard"],
    ):
        listing = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for name in listing.splitlines():
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
            else:
                (folder / name).unlink(missing_ok=True)
    write_images(folder / "data/few")
    write_params(folder / "params.yaml", **SMALL_PARAMS)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "Shrink", cwd=folder)
    run("dvc", "repro", cwd=folder)
