"""Small models and data that the tests share."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from stages.core.dataset import ImageDataset
from stages.models.batches import DatasetSplit
from tests.helpers.datasets import toy_dataset
from tests.helpers.models import SmallNet
from tests.helpers.projects import make_project
from tests.helpers.workers import made_once


def pytest_configure():
    """One thread for each worker process and what it starts: more would wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """No test cuts the power: what it writes need not be on the disk, which takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def float64():
    """Where rounding would decide whether a loss grew, or add up over the steps of an attack."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def pipeline_project(tmp_path_factory) -> Path:
    """A project in which the pipeline has run, in a minute; each worker process has a copy.

    Its tests leave it as they found it, results committed.
    """
    original = made_once(tmp_path_factory, "pipeline", make_project)
    copy = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(original, copy, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def small_net() -> SmallNet:
    model = SmallNet()
    model(torch.rand(32, 3, 16, 16))  # running statistics that aren't the initial ones
    return model.eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """x (24, 3, 16, 16), y (24,)."""
    return torch.rand(24, 3, 16, 16), torch.arange(24) % 3


@pytest.fixture(scope="module")
def trained() -> tuple[ImageDataset, SmallNet]:
    """A dataset, and a small net that classifies it well: attacks have something to change."""
    torch.manual_seed(0)
    dataset, model = toy_dataset(size=16), SmallNet()
    train = DatasetSplit.from_dataset(dataset, "train")
    x, y = train.load(np.arange(len(train)), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return dataset, model.eval()


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Every figure that the test draws; they are not rendered, which takes most of the time."""
    from stages.report import style  # matplotlib takes a second

    figures = []

    class Canvas:
        def __init__(self, figure) -> None:
            figures.append(figure)

        def draw(self) -> None:
            pass

        def buffer_rgba(self) -> np.ndarray:
            return np.zeros((4, 4, 4), np.uint8)

    monkeypatch.setattr(style, "FigureCanvasAgg", Canvas)
    return figures
