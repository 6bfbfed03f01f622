"""Experiments that run at the same time get different devices, also after one was killed."""

import os
import subprocess
import sys
import time

import pytest

from stages.core import sweeps
from stages.core.errors import InputError
from tests.helpers.repository import ROOT

STAGE = """
import os, sys, time
from stages.core.sweeps import take_devices
take_devices(int(sys.argv[1]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def stage(tmp_path):
    started = []

    def start(count: int = 1, **environment: str) -> subprocess.Popen:
        variables = (
            os.environ
            | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path), "SWEEP_GPUS": "4,7"}
            | environment
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", STAGE, str(count)],
                env=variables,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def device(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def test_stages_take_different_devices_and_wait_for_a_free_one(stage):
    first, second = stage(), stage()
    taken = {process: device(process) for process in (first, second)}
    assert set(taken.values()) == {"4", "7"}
    third = stage()
    time.sleep(2)
    second.kill()
    assert device(third) == taken[second]


def test_stage_takes_all_its_devices_or_none(stage):
    both = stage(2)
    assert device(both) == "4,7"


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
