"""Memory of freed tensors."""

import platform
import subprocess
import sys

import pytest

from stages.core import memory
from tests.helpers.repository import ROOT

# Page faults of ten tensors of 64 MiB, one after the other, once twenty were there before.
SCRIPT = """
import resource
import torch
from stages.core.memory import keep_freed_memory

keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no options")
def test_memory_of_freed_tensors_is_used_again():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 163_840 / 4  # pages; where blocks lie is left to glibc


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.keep_freed_memory()
