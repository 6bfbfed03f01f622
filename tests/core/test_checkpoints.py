"""States survive kills, full disks and second trainers."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.core.checkpoints import AlreadyRunningError, Checkpoint, run_fingerprint
from stages.training import methods
from tests.helpers.repository import ROOT
from tests.helpers.training_runs import EPS, P, checkpoint_in, same, train


def test_a_full_disk_while_saving_keeps_the_state_before(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    checkpoint.save({"weights": torch.ones(1000)})
    # The system refuses to let a file grow, as it does on a full disk.
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"last.pt: expected to save the state, got: .*; the state before it is kept"):
            checkpoint.save({"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(checkpoint.load()["weights"], torch.ones(1000))
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


TRAIN = """
import sys, torch
from lightning_fabric import Fabric
from stages.training import methods
from tests.helpers.training_runs import EPS, P, train
print("ready", flush=True)
torch.set_num_threads(1)
fabric, method = Fabric(accelerator="cpu", devices=1), adversarial.of(P, "linf", EPS)
train(fabric, sys.argv[1], P, method, lambda row: print(row["epoch"], flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["ready", "1", "2"])
def test_kill_9_at_any_moment_costs_an_epoch_at_most_and_changes_no_bit(fabric, tmp_path, after):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    method = methods.of(P, "linf", EPS)
    whole = train(fabric, tmp_path / "whole", P, method)
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(tmp_path / "parts")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline().strip() != after:
        assert process.poll() is None
    time.sleep(0.05)  # somewhere in an epoch
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = train(fabric, tmp_path / "parts", P, method)
    torch.set_num_threads(threads)
    assert resumed.history == whole.history
    assert same(resumed.state, whole.state)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_trainer_goes_with_the_dvc_that_started_it(tmp_path):
    trainer = (
        "import os, time; from stages.core.checkpoints import exit_with_parent; exit_with_parent()\n"
        "print(os.getpid(), flush=True); time.sleep(300)"
    )
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {trainer!r}])"
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the trainer outlived its parent")


def test_a_second_trainer_of_the_same_work_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    other = (
        "import sys; from lightning_fabric import Fabric; from stages.core.checkpoints import *\n"
        "try:\n  with Checkpoint('s', 'k').held(Fabric(accelerator='cpu')): pass\n"
        "except AlreadyRunningError: sys.exit(7)"
    )
    with Checkpoint("s", "k").held(fabric):
        assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 0
    assert issubclass(AlreadyRunningError, ValueError)


def test_work_key_changes_with_params_and_inputs(tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"1")
    keys = [run_fingerprint(P, [file]), run_fingerprint(dataclasses.replace(P, lr=0.3), [file])]
    file.write_bytes(b"2")
    keys.append(run_fingerprint(P, [file]))
    assert len(set(keys)) == 3
    assert run_fingerprint(P, [file]) == keys[2]
