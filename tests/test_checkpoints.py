"""Training states survive kills, full disks and second trainers."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.core.checkpoints import BusyError, Checkpoint, work_key
from tests.toy_training import P

ROOT = Path(__file__).parents[1]


def test_full_disk_while_saving_keeps_the_state_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint("test", "key")
    checkpoint.folder, checkpoint.file = tmp_path, tmp_path / "last.pt"
    checkpoint.save({"epoch": 1})

    def full(state, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last.pt: expected to save .* No space left"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load() == {"epoch": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_a_second_trainer_of_the_same_work_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    other = (
        "import sys; from lightning_fabric import Fabric; from stages.core.checkpoints import *\n"
        "try:\n  with Checkpoint('s', 'k').held(Fabric(accelerator='cpu')): pass\n"
        "except BusyError: sys.exit(7)"
    )
    root = Path(__file__).parents[1]
    with Checkpoint("s", "k").held(fabric):
        assert subprocess.run([sys.executable, "-c", other], cwd=root, check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", other], cwd=root, check=False).returncode == 0
    assert issubclass(BusyError, ValueError)


def test_work_key_changes_with_params_and_inputs(tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"1")
    keys = [work_key(P, [file]), work_key(dataclasses.replace(P, lr=0.3), [file])]
    file.write_bytes(b"2")
    keys.append(work_key(P, [file]))
    assert len(set(keys)) == 3
    assert work_key(P, [file]) == keys[2]
