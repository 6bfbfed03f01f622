"""Small models and data that the tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tests.helpers.models import LinearLogits, SmallNet
from tests.helpers.projects import make_project


def pytest_configure():
    """One thread for each of several worker processes and for what they start: more would wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def pipeline_project(tmp_path_factory) -> Path:
    """A project in which the pipeline has run once; costs a minute. Its tests leave it as they found it, results committed."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    make_project(folder)
    return folder


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def linear() -> LinearLogits:
    return LinearLogits(torch.randn(3 * 4 * 4), 0.3)


@pytest.fixture
def small_net() -> SmallNet:
    model = SmallNet()
    model(torch.rand(32, 3, 16, 16))  # running statistics that aren't the initial ones
    return model.eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """x (24, 3, 16, 16), y (24,)."""
    return torch.rand(24, 3, 16, 16), torch.arange(24) % 3
