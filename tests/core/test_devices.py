"""Where the networks run, and how precisely."""

import dataclasses

import pytest
import torch

from stages.core.devices import bf16_is_faster, make_fabric
from stages.core.errors import InputError
from stages.core.params import Runtime

RUNTIME = Runtime(device="cpu", devices=1, precision="auto", workers=0, tracking=False)


@pytest.mark.parametrize(
    ("cpu", "native"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_bfloat16_is_chosen_where_it_pays(cpu, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert bf16_is_faster("cpu") is native
    assert make_fabric(RUNTIME).strategy.precision.precision == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_used_whatever_the_hardware(precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": precision == "fp32"})
    fabric = make_fabric(dataclasses.replace(RUNTIME, precision=precision))
    with fabric.autocast():
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"runtime.device: expected a device of this machine \(cpu.*\), got mps"):
        make_fabric(dataclasses.replace(RUNTIME, device="mps"))
