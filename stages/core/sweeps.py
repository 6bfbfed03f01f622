"""One device per experiment of a sweep: ``make sweep GPUS=0,1`` or ``GPUS=slurm``."""

import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

from stages.core.distributed import replace_by_srun
from stages.core.errors import InputError

VARIABLE = "SWEEP_GPUS"  # comma-separated numbers, or slurm
_held: list[FileLock] = []  # until this process ends, however it ends


def take_devices(count: int) -> None:
    """In a sweep, wait for ``count`` devices that no other stage computes on, and see only those.

    To be called before CUDA is asked. ``slurm``: in an allocation the stage becomes a step of its
    own, for which SLURM finds a node and its devices.

    Raises:
        InputError: when the sweep has fewer devices.
    """
    slots = os.environ.get(VARIABLE)
    if (
        not slots or "LOCAL_RANK" in os.environ
    ):  # one of the processes that a stage with devices started
        return
    if slots == "slurm":
        if "SLURM_JOB_ID" not in os.environ:
            raise InputError(
                "GPUS=slurm: expected a SLURM allocation, got none: submit the command with sbatch"
            )
        if "SLURM_STEP_ID" not in os.environ:
            gpus = [f"--gpus={count}"] if os.environ.get("SLURM_GPUS_ON_NODE") else []
            replace_by_srun("--nodes=1", "--ntasks=1", "--exact", *gpus)
        return
    gpus = slots.split(",")
    if len(gpus) < count:
        raise InputError(
            f"runtime.devices: expected at most the {len(gpus)} GPUs of the sweep, got {count}"
        )
    # DVC_ROOT is the main repository also in queued experiments.
    folder = Path(os.environ.get("DVC_ROOT", ".")) / ".ckpt"
    folder.mkdir(exist_ok=True)
    while (
        len(free := _lock_free(folder, gpus)) < count
    ):  # all or none: half of them each would wait forever
        for lock in free.values():
            lock.release()
        time.sleep(1)
    for lock in list(free.values())[count:]:
        lock.release()
    _held.extend(list(free.values())[:count])
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(list(free)[:count])


def _lock_free(folder: Path, gpus: list[str]) -> dict[str, FileLock]:
    free = {}
    for gpu in gpus:
        lock = FileLock(folder / f"gpu-{gpu}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        free[gpu] = lock
    return free
