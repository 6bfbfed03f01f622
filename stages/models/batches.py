"""Pictures of the store as tensors, and in which order and with which weight they are trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.core.dataset import DatasetError, ImageDataset


@dataclass(frozen=True)
class DatasetSplit:
    """One split of the store: all images (N, H, W, 3) uint8, all labels (N,), and the rows (M,) that belong to the split."""

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, store: ImageDataset, name: str) -> "DatasetSplit":
        """Raises DatasetError when the split is empty."""
        rows = store.indices(name)
        if not len(rows):
            raise DatasetError(
                f"expected photographs in the split {name!r}, got none: raise data.{name}_fraction or add photographs"
            )
        return cls(store.images, store.labels, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def stratified(self, count: int, seed: int) -> "DatasetSplit":
        """At most ``count`` of the pictures, every class by its share but at least one; the same ones for the same seed."""
        if count >= len(self):
            return self
        rng, labels = np.random.default_rng(seed), self.labels[self.rows]
        # Pictures in random order within their class; the k-th of n in a class stands at (k + 1/2) / n of the queue.
        place = np.empty(len(self))
        for name in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == name))
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
            place[members[0]] = 0  # at least one
        return DatasetSplit(self.images, self.labels, np.sort(self.rows[np.argsort(place, kind="stable")[:count]]))

    def batch(self, positions: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) float32 in [0, 1], channels last in memory, and y (B,), of the split's pictures at these positions."""
        rows = self.rows[positions]
        pixels = torch.from_numpy(self.images[rows]).to(device)  # (B, H, W, 3)
        x = pixels.permute(0, 3, 1, 2) / 255  # (B, 3, H, W); the permuted view is channels last
        return x, torch.from_numpy(self.labels[rows]).to(device)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (K,) of mean 1 over the pictures, the same total for every class."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1))


def epoch_indices(split: DatasetSplit, classes: int, balance: str, draws: torch.Generator) -> np.ndarray:
    """Positions of one epoch's pictures: a permutation; with ``balance`` "sampler" as many draws, every class equally often."""
    if balance == "sampler":
        labels = split.labels[split.rows]
        weights = torch.from_numpy(class_weights(labels, classes)[labels])
        return torch.multinomial(weights, len(split), replacement=True, generator=draws).numpy()
    return torch.randperm(len(split), generator=draws).numpy()
