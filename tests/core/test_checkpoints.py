"""Checkpoints survive interruptions, a full disk and a second process of the same run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from stages.core.checkpoints import Checkpoint, run_fingerprint
from stages.core.processes import AlreadyRunningError
from tests.helpers.full_disk import file_size_limit
from tests.helpers.repository import ROOT
from tests.helpers.training_runs import PARAMS, checkpoint_in, same_tensors, train, with_params


def test_full_disk_while_saving_keeps_previous_checkpoint(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    checkpoint.save({"weights": torch.ones(1000)})
    with file_size_limit(100_000), pytest.raises(OSError, match=r"last\.pt"):
        checkpoint.save({"weights": torch.zeros(100_000)})
    assert torch.equal(checkpoint.load()["weights"], torch.ones(1000))
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def flip_a_bit(content: bytes) -> bytes:
    middle = content.index(torch.full((1000,), 2.0).numpy().tobytes()) + 2000
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    {
        "truncated": lambda content: content[:-100],
        "empty": lambda content: b"",
        "random": lambda content: bytes(range(256)) * 20,
        "one flipped bit": flip_a_bit,
    }.items(),
    ids=lambda item: item[0],
)
def test_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, capfd, damage):
    checkpoint = checkpoint_in(tmp_path)
    for value in (1.0, 2.0):
        checkpoint.save({"weights": torch.full((1000,), value)})
    checkpoint.file.write_bytes(damage[1](checkpoint.file.read_bytes()))
    assert torch.equal(checkpoint.load()["weights"], torch.ones(1000))
    assert "last.pt: expected an intact state, got" in capfd.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last.pt.damaged", "previous.pt"]
    checkpoint.previous.write_bytes(b"")
    assert checkpoint.load() is None


def test_checkpoint_of_another_run_or_kind_is_set_aside(tmp_path):
    checkpoint, other = checkpoint_in(tmp_path / "a"), checkpoint_in(tmp_path / "b")
    other.save({"weights": torch.ones(3)})
    checkpoint.file.write_bytes(other.file.read_bytes())
    assert checkpoint.load() is None
    torch.save([1, 2], checkpoint.file)
    assert checkpoint.load() is None


def test_training_goes_on_from_the_epoch_before_a_damaged_one(fabric, tmp_path):
    uninterrupted = train(fabric, tmp_path / "whole")
    (tmp_path / "damaged").mkdir()

    def damage_after_second_epoch(row):
        if row["epoch"] == 2:
            file = checkpoint_in(tmp_path / "damaged").file
            file.write_bytes(file.read_bytes()[:-1000])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fabric, tmp_path / "damaged", on_epoch=damage_after_second_epoch)
    resumed = train(fabric, tmp_path / "damaged")
    assert resumed.history == uninterrupted.history
    assert same_tensors(resumed.state, uninterrupted.state)


TRAIN = """
import sys, torch
from lightning_fabric import Fabric
from tests.helpers.training_runs import train
torch.set_num_threads(1)
train(Fabric(accelerator="cpu", devices=1), sys.argv[1])
"""


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_sigkill_loses_at_most_one_epoch_and_resume_is_bit_identical(fabric, tmp_path):
    folder = tmp_path / "interrupted"
    command = [sys.executable, "-c", TRAIN, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("epoch   1/3")
        time.sleep(0.05)  # somewhere in the second epoch
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint_in(folder).load()
    uninterrupted, resumed = train(fabric, tmp_path / "uninterrupted"), train(fabric, folder)
    assert resumed.history == uninterrupted.history
    assert same_tensors(resumed.state, uninterrupted.state)


def test_second_process_of_the_same_run_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Checkpoint("train", "this").lock(fabric):
        with pytest.raises(AlreadyRunningError), Checkpoint("train", "this").lock(fabric):
            pass
        with Checkpoint("train", "other").lock(fabric):
            pass
    with Checkpoint("train", "this").lock(fabric):
        pass


def test_complete_run_deletes_states_that_nobody_resumed_for_two_weeks(
    fabric, tmp_path, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder, day = tmp_path / ".ckpt/train", 24 * 3600

    def interrupted(name, days, stage="train"):
        """A run whose last state was written some days ago, and the one before much earlier."""
        checkpoint = Checkpoint(stage, name)
        with pytest.raises(KeyboardInterrupt), checkpoint.lock(fabric):
            for epoch in (1, 2):
                checkpoint.save({"epoch": epoch})
            raise KeyboardInterrupt
        for file, age in ((checkpoint.file, days), (checkpoint.previous, days + 30)):
            os.utime(file, times=(time.time() - age * day,) * 2)
        return checkpoint

    interrupted("abandoned", 15)
    recent, running = interrupted("recent", 13), interrupted("running", 15)
    other_stage = interrupted("old", 15, stage="attack")
    (folder / "complete.lock").touch()
    with running.lock(fabric):
        with Checkpoint("train", "this").lock(fabric) as checkpoint:
            checkpoint.save({"epoch": 1})
        left = {path.name for path in folder.iterdir()}
        assert left == {"recent", "recent.lock", "running", "running.lock"}
        assert running.load() == {"epoch": 2}
    assert {path.name for path in folder.iterdir()} == {"recent", "recent.lock"}
    assert recent.load() == other_stage.load() == {"epoch": 2}


def test_run_fingerprint_changes_with_params_and_inputs(tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"1")
    fingerprints = [run_fingerprint(PARAMS, [file]), run_fingerprint(with_params(lr=0.3), [file])]
    file.write_bytes(b"2")
    fingerprints.append(run_fingerprint(PARAMS, [file]))
    assert len(set(fingerprints)) == 3
    assert run_fingerprint(PARAMS, [file]) == fingerprints[2]
