"""Experiments that run at the same time get different devices, also after one was killed."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import pytest

from stages.core import sweeps
from stages.core.errors import InputError


def run_stage(sender: Connection, count: int) -> None:
    sweeps.take_devices(count)
    sender.send(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(60)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Starts a process that takes so many devices; the process, and what tells which."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("SWEEP_GPUS", "4,7")
    fork, started = multiprocessing.get_context("fork"), []  # it need not import torch again

    def start(count: int = 1):
        receiver, sender = fork.Pipe(duplex=False)
        started.append(fork.Process(target=run_stage, args=(sender, count)))
        started[-1].start()
        return started[-1], receiver

    yield start
    for process in started:
        process.kill()
        process.join()


def test_stages_take_different_devices_and_wait_for_a_free_one(stage):
    (_, first), (killed, second) = stage(), stage()
    devices = [first.recv(), second.recv()]
    assert sorted(devices) == ["4", "7"]
    _, third = stage()
    assert not third.poll(0.5), "both are taken"
    killed.kill()
    assert third.recv() == devices[1]


def test_stage_takes_all_its_devices_or_none(stage):
    _, taken = stage(2)
    assert taken.recv() == "4,7"


def test_without_a_sweep_nothing_is_taken(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweeps.take_devices(1)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ("0,1", "runtime.devices: expected at most the 2 GPUs of the sweep, got 3"),
        ("slurm", "expected a SLURM allocation, got none"),
    ],
)
def test_sweep_without_such_devices_is_refused(monkeypatch, slots, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SWEEP_GPUS", slots)
    with pytest.raises(InputError, match=message):
        sweeps.take_devices(3)


def test_stage_of_a_sweep_in_an_allocation_becomes_a_step(monkeypatch):
    for name, value in {
        "SWEEP_GPUS": "slurm",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    started = []
    monkeypatch.setattr(sweeps, "replace_by_srun", lambda *options: started.append(options))
    sweeps.take_devices(2)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    sweeps.take_devices(2)
    assert started == [("--nodes=1", "--ntasks=1", "--exact", "--gpus=2")]
