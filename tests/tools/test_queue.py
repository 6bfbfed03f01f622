"""Experiments in a copy of the tracked files: which paths they would not find."""

import subprocess
from pathlib import Path

import pytest

from stages.core.errors import InputError
from tests.helpers.params import write_params
from tools import queue


@pytest.fixture(autouse=True)
def _repository(tmp_path, monkeypatch):
    """A git repository with photographs in a tracked folder, and in others."""
    folder = tmp_path / "project"
    for name in ("tracked", "data/raw/mine", "added"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").touch()
    (folder / "added.dvc").touch()
    monkeypatch.chdir(folder)
    for command in (["init", "-q"], ["add", "tracked", "added.dvc"]):
        subprocess.run(["git", *command], check=True)


def set_paths(**changes):
    paths = {"data.source": "tracked", "data.label_fixes": "none"}
    write_params(Path("params.yaml"), **{**paths, **changes})


def test_paths_that_are_the_same_in_a_copy_are_accepted():
    for path in ("tracked", "added", Path("data/raw/mine").absolute()):
        set_paths(**{"data.source": str(path), "model.weights": "imagenet"})
        queue.main()


@pytest.mark.parametrize("path", ["data/raw/mine", "../elsewhere", "missing"])
def test_path_that_a_copy_lacks_is_refused_with_the_one_to_write(path):
    set_paths(**{"data.source": path})
    with pytest.raises(InputError, match=r"data\.source: expected an absolute path") as error:
        queue.main()
    assert str(error.value).endswith(f"write {Path(path).absolute()}")


def test_every_path_is_named():
    set_paths(**{"model.weights": "w.pth", "attack_eval.surrogate": "s.safetensors"})
    with pytest.raises(InputError) as error:
        queue.main()
    keys = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert keys == ["model.weights", "attack_eval.surrogate"]
