"""Images of the processed dataset as tensors, and in which order and with which weight they are trained on."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stages.core.dataset import ImageDataset
from stages.core.errors import InputError


@dataclass(frozen=True)
class DatasetSplit:
    """One split: all images (N, H, W, 3) uint8, all labels (N,) int64, and the rows (M,) that belong to the split."""

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @classmethod
    def from_dataset(cls, dataset: ImageDataset, name: str) -> Self:
        """The split train, val or test. Raises InputError when it is empty."""
        rows = dataset.split_rows(name)
        if not len(rows):
            remedy = (
                "lower data.val_fraction and data.test_fraction"
                if name == "train"
                else f"raise data.{name}_fraction"
            )
            raise InputError(
                f"expected images in the split {name!r}, got none: {remedy} or add images"
            )
        return cls(dataset.images, dataset.labels, rows)

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.rows)

    def subset(self, positions: np.ndarray) -> Self:
        """The images at these positions of the split."""
        return type(self)(self.images, self.labels, self.rows[positions])

    def stratified_positions(self, count: int, seed: int) -> np.ndarray:
        """Positions, ascending, of at most ``count`` images: each class in its proportion, but at least one image."""
        if count >= len(self):
            return np.arange(len(self))
        rng, labels = np.random.default_rng(seed), self.labels[self.rows]
        # Interleave the classes proportionally: image k of n in a class, in random order, is queued at (k + 1/2) / n.
        queue = np.empty(len(self))
        for name in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == name))
            queue[members] = (np.arange(len(members)) + 0.5) / len(members)
            queue[members[0]] = 0  # at least one
        return np.sort(np.argsort(queue, kind="stable")[:count])

    def load(self, positions: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images at these positions: x (B, 3, H, W) float32 in [0, 1], channels last in memory, and y (B,)."""
        rows = self.rows[positions]
        pixels = torch.from_numpy(self.images[rows]).to(device)  # (B, H, W, 3)
        x = pixels.permute(0, 3, 1, 2) / 255  # (B, 3, H, W); the permuted view is channels last
        return x, torch.from_numpy(self.labels[rows]).to(device)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (K,) that give every class the same total weight, with mean 1 over the images (scikit-learn's "balanced")."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1))


def epoch_positions(
    split: DatasetSplit, classes: int, balance: str, generator: torch.Generator
) -> np.ndarray:
    """Positions of one epoch's images: a permutation; with "sampler" drawn with replacement, each class as often."""
    if balance == "sampler":
        labels = split.labels[split.rows]
        weights = torch.from_numpy(class_weights(labels, classes)[labels])
        return torch.multinomial(weights, len(split), replacement=True, generator=generator).numpy()
    return torch.randperm(len(split), generator=generator).numpy()
