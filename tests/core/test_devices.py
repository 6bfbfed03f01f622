"""Device and precision that the networks run with."""

import os
import platform

import pytest
import torch
from lightning_fabric.accelerators import cuda
from lightning_fabric.utilities.rank_zero import rank_zero_info

from stages.core.devices import bf16_is_faster, make_fabric
from stages.core.errors import InputError
from tests.helpers.params import params

RUNTIME = params().runtime.model_copy(update={"device": "cpu"})


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_auto_precision_is_bfloat16_only_where_it_is_faster(cpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert bf16_is_faster("cpu") is expected
    precision = make_fabric(RUNTIME).strategy.precision.precision
    assert precision == ("bf16-mixed" if expected else "32-true")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_explicit_precision_is_used_on_any_hardware(precision, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": precision == "fp32"})
    fabric = make_fabric(RUNTIME.model_copy(update={"precision": precision}))
    with fabric.autocast():
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    (line,) = capsys.readouterr().out.splitlines()
    name = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert line.startswith("device: cpu")
    assert line.endswith(f"{os.cpu_count()} cores, {platform.machine()}, {name}")
    assert not caplog.records, "the library says so in its own words, too"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_missing_device_is_named():
    with pytest.raises(
        InputError, match=r"runtime.device: expected a device of this machine \(.*cpu\), got mps"
    ):
        make_fabric(RUNTIME.model_copy(update={"device": "mps"}))


def test_lightnings_advice_to_lower_the_precision_of_float32_is_not_shown(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda device: True)
    with caplog.at_level("INFO"):
        cuda._check_cuda_matmul_precision.__wrapped__(torch.device("cuda"))
        rank_zero_info("other")
    assert caplog.messages == ["other"]
