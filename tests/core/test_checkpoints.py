"""Checkpoints survive interruptions, a full disk and a second process of the same run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning_fabric import Fabric

from stages.core.checkpoints import Checkpoint, StepCache, run_fingerprint
from stages.training.methods import make_training_method
from tests.helpers.full_disk import file_size_limit
from tests.helpers.repository import ROOT
from tests.helpers.training_runs import EPS, PARAMS, checkpoint_in, same_tensors, train, with_params


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
from stages.training.methods import make_training_method
from tests.helpers.training_runs import EPS, PARAMS, train
print("ready", flush=True)
torch.set_num_threads(1)
fabric, method = Fabric(accelerator="cpu", devices=1), make_training_method(PARAMS, norm="linf", eps=EPS)
train(fabric, sys.argv[1], PARAMS, method, lambda row: print(row["epoch"], flush=True))
"""


@pytest.fixture(scope="module")
def train_run():
    """A function that trains in a folder, on one thread as the interrupted process does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fabric, method = (
        Fabric(accelerator="cpu", devices=1),
        make_training_method(PARAMS, norm="linf", eps=EPS),
    )
    yield lambda folder: train(fabric, folder, PARAMS, method)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(train_run, tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.slow
@pytest.mark.parametrize("after", ["ready", "1", "2"])
def test_sigkill_loses_at_most_one_epoch_and_resume_is_bit_identical(
    train_run, uninterrupted, tmp_path, after
):
    folder = tmp_path / "interrupted"
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline().strip() != after:
        assert process.poll() is None
    time.sleep(0.05)  # somewhere in an epoch
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished_epochs = 0 if after == "ready" else int(after)
    if finished_epochs:
        assert len(checkpoint_in(folder).load()["history"]) >= finished_epochs
    resumed = train_run(folder)
    assert resumed.history == uninterrupted.history
    assert same_tensors(resumed.state, uninterrupted.state)


def test_second_process_of_the_same_run_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    other = (
        "import sys; from lightning_fabric import Fabric; from stages.core.checkpoints import Checkpoint\n"
        "from stages.core.processes import AlreadyRunningError\n"
        "try:\n  with Checkpoint('s', 'k').lock(Fabric(accelerator='cpu')): pass\n"
        "except AlreadyRunningError: sys.exit(7)"
    )
    with Checkpoint("s", "k").lock(fabric):
        assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 0


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


def test_step_cache_computes_finished_steps_only_once(tmp_path):
    checkpoint, computed = checkpoint_in(tmp_path), []

    def compute(step):
        computed.append(step)
        return {"value": torch.tensor(float(len(computed))), "names": [step]}

    first = StepCache(checkpoint).get_or_compute("a", lambda: compute("a"))
    resumed = StepCache(checkpoint)
    assert resumed.get_or_compute("a", lambda: compute("a")) == first
    resumed.get_or_compute("b", lambda: compute("b"))
    assert computed == ["a", "b"]
    StepCache().get_or_compute("a", lambda: compute("a"))
    assert computed == ["a", "b", "a"], "without a checkpoint nothing is shared"
