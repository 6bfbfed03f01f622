"""`make` lists the targets; each is a single command and names only files that exist."""

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
    )
    hidden = (
        "Executor",
        "adv.robust_accuracy_worst_low",
        "difference.clean_accuracy",
        "n",
        "data/processed",
        "stages/predict.py",
    )
    assert not [name for name in shown if re.match(pattern, name)]
    assert all(re.match(pattern, name) for name in hidden)
