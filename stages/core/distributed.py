"""Several processes for one stage: what starts them, and how they share results."""

import os
import shutil
import sys
import traceback
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from stages.core.errors import InputError


def cluster_environment(nodes: int, devices: int) -> ClusterEnvironment:
    """What starts ``devices`` processes on each of the nodes: Fabric, SLURM or torchrun.

    In a SLURM allocation of several nodes this process replaces itself by ``srun`` of the same
    command, so that dvc.yaml needs no other command there. On one node the variables of a job do
    not matter.

    Raises:
        InputError: when there is neither an allocation nor torchrun, or one of other numbers.
    """
    if nodes == 1:
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "SLURM_JOB_ID" not in os.environ:
        raise InputError(
            f"runtime.nodes: expected a SLURM allocation or torchrun for {nodes} nodes, "
            "got neither (docs/scaling.md has both)"
        )
    if (allocated := int(os.environ["SLURM_JOB_NUM_NODES"])) < nodes:
        raise InputError(
            f"runtime.nodes: expected at most the {allocated} nodes of this SLURM allocation, "
            f"got {nodes}"
        )
    step = tuple(int(os.environ.get(f"SLURM_STEP_NUM_{name}", 1)) for name in ("NODES", "TASKS"))
    if step == (1, 1):  # a batch script or an interactive shell
        replace_by_srun(f"--nodes={nodes}", f"--ntasks-per-node={devices}")
    if step != (nodes, nodes * devices):
        raise InputError(
            f"runtime.nodes, runtime.devices: expected a SLURM step of {nodes} nodes with "
            f"{nodes * devices} tasks, got {step[0]} with {step[1]}; "
            "without srun the stage starts that step itself"
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Fabric demands it
    return SLURMEnvironment(auto_requeue=False)


def replace_by_srun(*options: str) -> NoReturn:
    """Replace this process by a SLURM step with the same command.

    Raises InputError when there is no srun.
    """
    if not (srun := shutil.which("srun")):
        raise InputError("SLURM: expected the command srun in an allocation, got none on PATH")
    command = [srun, *options, "--export=ALL", "--kill-on-bad-exit=1"]
    if cpus := os.environ.get(
        "SLURM_CPUS_PER_TASK"
    ):  # since SLURM 22.05 a step does not inherit it
        command.append(f"--cpus-per-task={cpus}")
    sys.stdout.flush()
    os.execv(srun, [*command, sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def share(fabric: Fabric, result: Any, error: Exception | None) -> list[Any]:
    """What each process gives, in the order of ranks, in all of them; it must lie on the CPU.

    An error in one process ends all: the first process raises it, the others exit with status 1
    without a message.
    """
    if fabric.world_size == 1:
        if error is not None:
            raise error
        return [result]
    if error is not None:
        trace = "".join(traceback.format_exception(error))
        error.add_note(f"in process {fabric.global_rank}:\n{trace}")
    shared: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(shared, (result, error))
    for _, raised in shared:
        if raised is not None:
            if fabric.is_global_zero:
                raise raised
            sys.exit(1)
    return [part for part, _ in shared]
