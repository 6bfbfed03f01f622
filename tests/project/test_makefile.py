"""`make` lists the targets; each is a single command and names only files that exist."""

import os
import re
import shutil
import subprocess

import pytest

from tests.helpers.repository import ROOT

TARGETS = re.findall(r"^([a-z]+): ", (ROOT / "Makefile").read_text(), re.MULTILINE)
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_make_without_target_lists_all_targets():
    assert {line.split()[0] for line in make().splitlines()} == set(TARGETS)
    assert not [target for target in TARGETS if (ROOT / target).exists()], (
        "a file of that name would hide the target"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_a_single_command_that_names_existing_files(target):
    (command,) = make("-n", target).splitlines()
    for module in re.findall(r"python -m ((?:stages|tools|tests)\.[\w.]+)", command):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    for script in re.findall(r"python (\S+\.py)", command):
        assert (ROOT / script).is_file()


def test_reset_restores_params_that_git_takes_for_unchanged(tmp_path):
    """After `dvc exp run -S` size and time of the file may be those that git has noted."""

    def git(*arguments):
        author = ["-c", "user.name=u", "-c", "user.email=u@localhost"]
        command = ["git", *author, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    params, dvc = tmp_path / "params.yaml", tmp_path / "dvc"
    shutil.copy(ROOT / "Makefile", tmp_path)
    params.write_text("eps: 4\n")
    os.utime(params, (0, 0))
    git("init", "-q")
    git("config", "core.trustctime", "false")
    git("add", ".")
    git("commit", "-qm", "Start")
    params.write_text("eps: 8\n")
    os.utime(params, (0, 0))
    git("checkout", "HEAD", "--", "params.yaml")
    assert params.read_text() == "eps: 8\n", "git took it for unchanged"
    dvc.write_text("#!/bin/sh\necho dvc $@\n")
    dvc.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "reset"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert params.read_text() == "eps: 4\n"
    assert "dvc repro" in done.stdout.splitlines()


def test_help_names_every_benchmark():
    (line,) = [line for line in make().splitlines() if line.startswith("bench")]
    assert [
        name
        for name in (path.stem for path in (ROOT / "benchmarks").glob("*.py"))
        if name not in line
    ] == []


def test_experiment_table_shows_parameters_and_main_metrics_only():
    (pattern,) = re.findall(r"--drop '(.*)'", make("-n", "exps"))
    shown = (
        "Experiment",
        "seed",
        "attack.eps",
        "train_adv.augment.flip",
        "adv.clean_accuracy",
        "clean.robust_accuracy_worst",
        "metrics/headlines.json:clean.robust_accuracy_worst",
    )
    hidden = (
        "Executor",
        "adv.robust_accuracy_worst_low",
        "metrics/evaluate.json:adv.robust_accuracy_worst",
        "difference.clean_accuracy",
        "n",
        "data/processed",
        "stages/predict.py",
    )
    assert not [name for name in shown if re.match(pattern, name)]
    assert all(re.match(pattern, name) for name in hidden)
