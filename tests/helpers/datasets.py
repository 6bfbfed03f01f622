"""A small processed dataset, and the table of predictions of a model on it."""

import numpy as np
import pandas as pd
from lightning_fabric import Fabric
from torch import nn

from stages.attacks.runner import ModelUnderAttack, run_attack_suite
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.params import AttackEvalParams, ThreatModel
from stages.models.batches import DatasetSplit


def toy_dataset(
    images: int = 96, size: int = 32, seed: int = 0, classes: tuple[str, ...] = ("a", "b", "c")
) -> ImageDataset:
    """Classes that differ in one color channel, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % len(classes)
    pixels = rng.integers(60, 140, (images, size, size, 3))
    pixels[np.arange(images), :, :, labels] += 60
    split = np.array(
        [("train", "train", "val", "test")[i // len(classes) % 4] for i in range(images)]
    )
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


def under_attack(
    fabric: Fabric,
    model: nn.Module,
    dataset: ImageDataset,
    *,
    norm: str = "linf",
    batch_size: int = 128,
    fused_model: nn.Module | None = None,
) -> ModelUnderAttack:
    """A model to be attacked on the test split."""
    test = DatasetSplit.from_dataset(dataset, "test")
    return ModelUnderAttack(fabric, model, fused_model or model, test, norm, batch_size, seed=0)


def attack_predictions(
    fabric: Fabric,
    model: nn.Module,
    dataset: ImageDataset,
    threat: ThreatModel,
    p: AttackEvalParams,
    *,
    fused_model: nn.Module | None = None,
    cache: StepCache | None = None,
) -> pd.DataFrame:
    """predictions.csv of a model on the test split, as the stage computes it."""
    target = under_attack(
        fabric, model, dataset, norm=threat.norm, batch_size=p.batch_size, fused_model=fused_model
    )
    return run_attack_suite(target, dataset, threat, p, cache or StepCache())[0]
