"""A small processed dataset."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.dataset import IMAGES, MANIFEST, ImageDataset


def toy_dataset(
    images: int = 96, size: int = 32, seed: int = 0, classes: tuple[str, ...] = ("a", "b", "c")
) -> ImageDataset:
    """Classes that differ in one color channel, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % len(classes)
    pixels = rng.integers(60, 140, (images, size, size, 3))
    pixels[np.arange(images), :, :, labels] += 60
    return make_dataset(pixels.astype(np.uint8), labels, classes)


def make_dataset(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> ImageDataset:
    """Of pixels (N, H, W, 3) uint8 and labels (N,): half for training, a quarter for testing."""
    numbers = np.arange(len(labels))
    split = np.array(("train", "train", "val", "test"))[numbers // len(classes) % 4]
    names = [classes[k] for k in labels]
    manifest = pd.DataFrame(
        {
            "path": [f"{name}/{i:03d}.jpg" for i, name in enumerate(names)],
            "label": names,
            "group": [f"g{i:03d}" for i in numbers],
            "split": split,
            "sha256": [f"{i:064x}" for i in numbers],
        }
    )
    return ImageDataset(pixels, manifest, classes, labels.astype(np.int64))


def relabel(dataset: ImageDataset, labels: np.ndarray) -> ImageDataset:
    """The same images with other labels (N,)."""
    manifest = dataset.manifest.assign(label=[dataset.classes[k] for k in labels])
    return dataclasses.replace(dataset, labels=labels, manifest=manifest)


def write_dataset(dataset: ImageDataset, folder: Path) -> None:
    """As preprocess does."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / IMAGES, dataset.images)
    dataset.manifest.to_csv(folder / MANIFEST, index=False)
