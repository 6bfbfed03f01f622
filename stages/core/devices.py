"""Lightning Fabric: where, how precisely and in how many processes the networks run."""

import logging
import os
import platform
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from stages.core.distributed import cluster_environment
from stages.core.errors import InputError
from stages.core.memory import keep_freed_memory
from stages.core.params import RuntimeParams
from stages.core.sweeps import take_devices

# How long a process waits for the others before it gives up. One that ended is noticed at once.
TIMEOUT = timedelta(hours=12)

# Fabric advises everyone with a recent GPU to compute float32 less precisely, though scores are in
# full float32 on purpose, and announces bfloat16, which make_fabric says with the device.
UNWANTED = ("Tensor Cores", "Automatic Mixed Precision")
logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(
    lambda record: not any(words in record.getMessage() for words in UNWANTED)
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


def choose_device(runtime: RuntimeParams) -> str:
    """``runtime.device``, or the best of this machine: cuda, mps or cpu.

    Raises:
        InputError: when the one that was asked for is not there.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usable = [name for name in present if present[name]]
    if runtime.device == "auto":
        return usable[0]
    if runtime.device not in usable:
        raise InputError(
            f"runtime.device: expected a device of this machine ({', '.join(usable)}), "
            f"got {runtime.device}"
        )
    return runtime.device


def uses_bf16(runtime: RuntimeParams) -> bool:
    """Whether networks compute in bfloat16: ``runtime.precision``, or what is faster."""
    if runtime.precision == "auto":
        return bf16_is_faster(choose_device(runtime))
    return runtime.precision == "bf16"


def describe(runtime: RuntimeParams) -> dict[str, str]:
    """``device``, ``precision`` and ``torch``: what decides how the networks' numbers round."""
    device = choose_device(runtime)
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = torch.cpu.get_capabilities().get("cpu_name", device)
    precision = "bfloat16" if uses_bf16(runtime) else "float32"
    return {"device": name, "precision": precision, "torch": torch.__version__}


def describe_machine(runtime: RuntimeParams) -> str:
    """For people: ``AMD EPYC, 2 cores, x86_64, bfloat16``."""
    found, count = describe(runtime), runtime.devices * runtime.nodes
    name = found["device"]
    if choose_device(runtime) != "cuda":
        name += f", {os.cpu_count()} cores, {platform.machine()}"
    return f"{f'{count} × ' if count > 1 else ''}{name}, {found['precision']}"


def make_fabric(runtime: RuntimeParams) -> Fabric:
    """A launched Fabric; the same seed then gives the same bytes on the same machine.

    Prints device and precision. Raises InputError when the devices or nodes that were asked for are
    not there.
    """
    take_devices(runtime.devices)
    device = choose_device(runtime)
    most = {"cpu": runtime.devices, "cuda": torch.cuda.device_count(), "mps": 1}[device]
    if runtime.devices > most:
        raise InputError(
            f"runtime.devices: expected at most {most} on this machine ({device}), "
            f"got {runtime.devices}"
        )

    if device == "cpu":
        keep_freed_memory()
    # Deterministic matrix products on CUDA need this set early.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Where an architecture has an operation without a deterministic form, torch warns.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That would guard against memory that is read before it is written, and costs 3 to 8 %.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # Scores in float32 are computed in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    fabric = Fabric(
        accelerator=device,
        devices=runtime.devices,
        num_nodes=runtime.nodes,
        strategy=DDPStrategy(timeout=TIMEOUT) if runtime.devices * runtime.nodes > 1 else "auto",
        precision="bf16-mixed" if uses_bf16(runtime) else "32-true",
        plugins=[cluster_environment(runtime.nodes, runtime.devices)],
    )
    fabric.launch()
    if fabric.is_global_zero:
        print(f"device: {describe_machine(runtime)}")
    return fabric
