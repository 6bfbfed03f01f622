"""What starts the processes of a stage on several nodes, and what is said when it can't."""

import os
import sys
from types import SimpleNamespace

import pytest
from lightning_fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from stages.core import distributed
from stages.core.devices import make_fabric
from stages.core.distributed import cluster_environment, replace_by_srun, share
from stages.core.errors import InputError
from stages.core.processes import run_cli
from tests.helpers.params import params

BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NAME": "wrap",
    "SLURM_PROCID": "0",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def set_environment(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "kind"),
    [
        (STEP, 1, 2, LightningEnvironment),  # variables of a job don't matter on one node
        (STEP, 2, 2, SLURMEnvironment),
        (TORCHRUN, 2, 1, TorchElasticEnvironment),
    ],
)
def test_processes_are_started_by_what_is_there(monkeypatch, variables, nodes, devices, kind):
    set_environment(monkeypatch, variables)
    assert isinstance(cluster_environment(nodes, devices), kind)


@pytest.mark.parametrize(
    ("variables", "nodes", "message"),
    [
        ({}, 2, "expected a SLURM allocation or torchrun for 2 nodes, got neither"),
        (BATCH, 3, "expected at most the 2 nodes of this SLURM allocation, got 3"),
        (STEP, 2, "expected a SLURM step of 2 nodes with 2 tasks, got 2 with 4"),
    ],
)
def test_nodes_that_are_not_there_are_refused(monkeypatch, variables, nodes, message):
    set_environment(monkeypatch, variables)
    with pytest.raises(InputError, match=f"runtime.nodes.*: {message}"):
        cluster_environment(nodes, 1)


def test_missing_srun_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="expected the command srun"):
        replace_by_srun()


def test_batch_script_repeats_its_command_as_a_step(monkeypatch, tmp_path):
    set_environment(monkeypatch, BATCH | {"SLURM_CPUS_PER_TASK": "3", "PATH": str(tmp_path)})
    srun = tmp_path / "srun"
    srun.write_text("")
    srun.chmod(0o755)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "stages.attack_eval", "adv"])
    started = []

    def execv(file, command):
        started.append((file, command))
        raise SystemExit  # it does not return

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        cluster_environment(2, 4)
    ((file, command),) = started
    assert file == str(srun)
    assert {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=3", "--kill-on-bad-exit=1"} < set(
        command
    )
    assert command[-4:] == [sys.executable, "-m", "stages.attack_eval", "adv"]


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (1, SystemExit)])
def test_error_of_one_process_is_raised_by_the_first_and_silent_in_the_others(
    monkeypatch, rank, error
):
    def exchange(shared, mine):
        shared[:] = [(1, None), (None, ValueError("broken"))]

    monkeypatch.setattr(distributed.torch.distributed, "all_gather_object", exchange)
    fabric = SimpleNamespace(world_size=2, global_rank=rank, is_global_zero=rank == 0)
    with pytest.raises(error, match="broken" if rank == 0 else "1"):
        share(fabric, 1, None)


def test_single_process_keeps_its_result_and_raises_its_own_error(fabric):
    assert share(fabric, 1, None) == [1]
    with pytest.raises(KeyError):
        share(fabric, None, KeyError())


def test_nodes_without_allocation_stop_the_stage_with_one_line(capfd):
    runtime = params(**{"runtime.nodes": 2, "runtime.device": "cpu"}).runtime
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: make_fabric(runtime))
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: runtime.nodes: expected a SLURM allocation")
