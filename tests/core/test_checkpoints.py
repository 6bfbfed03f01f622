"""Checkpoints survive interruptions, a full disk and a second process of the same run."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from stages.core.checkpoints import AlreadyRunningError, Checkpoint, StepCache, run_fingerprint
from stages.training.methods import make_training_method
from tests.helpers.repository import ROOT
from tests.helpers.training_runs import EPS, PARAMS, checkpoint_in, same_tensors, train, with_params


def test_full_disk_while_saving_keeps_previous_checkpoint(tmp_path):
    checkpoint = checkpoint_in(tmp_path)
    checkpoint.save({"weights": torch.ones(1000)})
    # The system refuses to let a file grow, as it does on a full disk.
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"last.pt: expected to save the state, got: .*; the previous one is kept"):
            checkpoint.save({"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(checkpoint.load()["weights"], torch.ones(1000))
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


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
    fabric, method = Fabric(accelerator="cpu", devices=1), make_training_method(PARAMS, norm="linf", eps=EPS)
    yield lambda folder: train(fabric, folder, PARAMS, method)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(train_run, tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.slow
@pytest.mark.parametrize("after", ["ready", "1", "2"])
def test_sigkill_loses_at_most_one_epoch_and_resume_is_bit_identical(train_run, uninterrupted, tmp_path, after):
    folder = tmp_path / "interrupted"
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
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


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_process_ends_with_its_parent(tmp_path):
    child_code = (
        "import os, time; from stages.core.processes import exit_with_parent; exit_with_parent()\n"
        "print(os.getpid(), flush=True); time.sleep(300)"
    )
    parent_code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child_code!r}])"
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def test_second_process_of_the_same_run_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    other = (
        "import sys; from lightning_fabric import Fabric; from stages.core.checkpoints import *\n"
        "try:\n  with Checkpoint('s', 'k').lock(Fabric(accelerator='cpu')): pass\n"
        "except AlreadyRunningError: sys.exit(7)"
    )
    with Checkpoint("s", "k").lock(fabric):
        assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=False).returncode == 0
    assert issubclass(AlreadyRunningError, ValueError)


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
