"""What a run of the pipeline is called."""

import subprocess
from pathlib import Path

import pytest

from stages.tracking import configuration
from tests.helpers.params import write_params


@pytest.fixture(autouse=True)
def _repository(tmp_path, monkeypatch):
    """A commit with the tests' parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    write_params(Path("params.yaml"))
    author = ["-c", "user.name=u", "-c", "user.email=u@localhost"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "Start"]):
        subprocess.run(["git", *command], check=True)


def test_run_is_named_by_eps_seed_and_what_differs_from_its_baseline(monkeypatch):
    assert configuration.run_name("HEAD") == "eps=8/255 seed=0"
    changes = {"seed": 3, "train_adv.method": "pgd", "runtime.workers": 7}
    write_params(Path("params.yaml"), **changes)
    assert configuration.run_name("HEAD") == "eps=8/255 seed=3 train_adv.method=pgd"
    assert configuration.run_name("unknown") == "eps=8/255 seed=3"
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-mole")
    assert configuration.run_name("HEAD").endswith(" train_adv.method=pgd (tiny-mole)")


def test_name_is_within_the_limit_of_mlflow():
    write_params(Path("params.yaml"), **{"data.source": "x" * 300})
    assert len(configuration.run_name("HEAD")) == configuration.MAX_NAME
