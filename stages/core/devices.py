"""Lightning Fabric: where, how precisely and in how many processes the networks run."""

import logging
import os
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from stages.core.distributed import cluster_environment
from stages.core.errors import InputError
from stages.core.params import RuntimeParams
from stages.core.sweeps import take_devices

# How long a process waits for the others before it gives up. One that ended is noticed at once.
TIMEOUT = timedelta(hours=12)

# Fabric advises everyone with a recent GPU to compute float32 less precisely; scores are in full
# float32 on purpose.
logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(
    lambda record: "Tensor Cores" not in record.getMessage()
)


def bf16_is_faster(device: str) -> bool:
    """Whether the hardware computes bfloat16 faster than float32.

    A CPU does with matrix units (AMX), or if it is AMD's: dot products (AVX512_BF16) pay on one
    and not on the other. Estimate for ResNet-50 at 56 pixels,
    batch 32, two cores, in images a second of clean training: a Zen 4 makes 99 in bfloat16 and 60
    in float32, a Xeon without AMX 62 and 74.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        cpu = torch.cpu.get_capabilities()
        return cpu.get("amx_bf16", False) or (
            cpu.get("avx512_bf16", False) and cpu["cpu_name"].startswith("AMD")
        )
    return False


def make_fabric(runtime: RuntimeParams) -> Fabric:
    """A launched Fabric; the same seed then gives the same bytes on the same machine.

    Raises InputError when the devices or nodes that were asked for are not there.
    """
    take_devices(runtime.devices)
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    device = (
        next(d for d in ("cuda", "mps", "cpu") if present[d])
        if runtime.device == "auto"
        else runtime.device
    )
    if not present[device]:
        usable = ", ".join(name for name in present if present[name])
        raise InputError(
            f"runtime.device: expected a device of this machine ({usable}), got {device}"
        )
    most = {"cpu": runtime.devices, "cuda": torch.cuda.device_count(), "mps": 1}[device]
    if runtime.devices > most:
        raise InputError(
            f"runtime.devices: expected at most {most} on this machine ({device}), "
            f"got {runtime.devices}"
        )
    bf16 = bf16_is_faster(device) if runtime.precision == "auto" else runtime.precision == "bf16"

    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # deterministic matrix products on CUDA need it set early
    torch.use_deterministic_algorithms(
        True, warn_only=True
    )  # a warning for an architecture without one
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # that guards against unset memory, and costs 3 to 8 %
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        False  # fp32 scores are fp32 scores
    )

    fabric = Fabric(
        accelerator=device,
        devices=runtime.devices,
        num_nodes=runtime.nodes,
        strategy=DDPStrategy(timeout=TIMEOUT) if runtime.devices * runtime.nodes > 1 else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
        plugins=[cluster_environment(runtime.nodes, runtime.devices)],
    )
    fabric.launch()
    return fabric
