"""Small models and data that the tests share."""

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from stages.attacks.runner import ModelUnderAttack, run_attack_suite
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.params import Attack, AttackEval
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from tests.helpers.projects import make_project


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A project in which the pipeline has run once; costs a minute. Its tests leave it as they found it, results committed."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    make_project(folder)
    return folder


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


class Linear(nn.Module):
    """Two classes, logits (0, w·x + b): the linf distance to the boundary is |w·x + b| / ||w||_1."""

    def __init__(self, weight: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.tensor(bias))

    def forward(self, x):
        score = (x.flatten(1) * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def linear():
    return Linear(torch.randn(3 * 4 * 4), 0.3)


class SmallNet(nn.Module):
    """Convolution, BatchNorm, dropout: everything whose state an attack could disturb. float64 where a test asks."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 16, classes))

    def forward(self, x):
        return self.head(self.body(x))


def tiny_classifier(classes=("a", "b", "c"), size: int = 16) -> Classifier:
    """The pipeline's classifier around a network that trains in no time."""
    model = Classifier("squeezenet1_1", classes, size)
    model.backbone = SmallNet(len(classes))
    return model


@pytest.fixture
def small_net():
    model = SmallNet()
    model(torch.rand(32, 3, 16, 16))  # running statistics that aren't the initial ones
    return model.eval()


@pytest.fixture
def pictures():
    x = torch.rand(24, 3, 16, 16)
    return x, torch.arange(24) % 3


def toy_store(images: int = 96, size: int = 32, seed: int = 0, classes: tuple[str, ...] = ("a", "b", "c")) -> ImageDataset:
    """Classes that differ in one colour channel, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % len(classes)
    pixels = rng.integers(60, 140, (images, size, size, 3))
    pixels[np.arange(images), :, :, labels] += 60
    split = np.array([("train", "train", "val", "test")[i // len(classes) % 4] for i in range(images)])
    manifest = pd.DataFrame(
        {
            "path": [f"{classes[k]}/{i:03d}.jpg" for i, k in enumerate(labels)],
            "label": [classes[k] for k in labels],
            "group": [f"g{i:03d}" for i in range(images)],
            "split": split,
            "sha256": [f"{i:064x}" for i in range(images)],
        }
    )
    return ImageDataset(pixels.astype(np.uint8), manifest, classes, labels.astype(np.int64))


def attack_table(
    fabric: Fabric,
    model: nn.Module,
    store: ImageDataset,
    threat: Attack,
    p: AttackEval,
    *,
    twin: nn.Module | None = None,
    journal: StepCache | None = None,
) -> pd.DataFrame:
    """predictions.csv of a model on the test split, as the stage makes it."""
    split = DatasetSplit.of(store, "test")
    target = ModelUnderAttack(fabric, model, twin or model, split, threat.norm, p.batch_size, seed=0)
    return run_attack_suite(target, store, threat, p, target.sample(p.subset), journal or StepCache())
