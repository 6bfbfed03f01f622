"""Images of the processed dataset as tensors, and their order and weights in training."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stages.core.dataset import ImageDataset
from stages.core.errors import InputError


@dataclass(frozen=True)
class DatasetSplit:
    """One split of the dataset: the images in some of its rows."""

    images: np.ndarray  # uint8 (N, H, W, 3), those of all splits
    labels: np.ndarray  # int64 (N,)
    rows: np.ndarray  # (M,), those of this split

    @classmethod
    def from_dataset(cls, dataset: ImageDataset, name: str) -> Self:
        """The split train, val or test. Raises InputError when it is empty."""
        rows = dataset.split_rows(name)
        if not len(rows):
            remedy = f"raise data.{name}_fraction"
            if name == "train":
                remedy = "lower data.val_fraction and data.test_fraction"
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
        """Positions of at most ``count`` images, ascending.

        Each class has its proportion of them, but at least one image.
        """
        if count >= len(self):
            return np.arange(len(self))
        rng, labels = np.random.default_rng(seed), self.labels[self.rows]
        # Image k of the n of a class, in random order, stands at (k + 1/2) / n of the queue: that
        # interleaves the classes in their proportions.
        queue = np.empty(len(self))
        for name in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == name))
            queue[members] = (np.arange(len(members)) + 0.5) / len(members)
            queue[members[0]] = 0  # at least one
        return np.sort(np.argsort(queue, kind="stable")[:count])

    def load(self, positions: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images at these positions: x (B, 3, H, W) float32 in [0, 1], and labels y (B,)."""
        rows = self.rows[positions]
        # Without waiting until a GPU has computed what it was given before.
        pixels, y = (
            torch.from_numpy(values[rows]).to(device, non_blocking=True)
            for values in (self.images, self.labels)
        )  # (B, H, W, 3), (B,)
        x = pixels.permute(0, 3, 1, 2) / 255  # (B, 3, H, W); the permuted view is channels last
        return x, y


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (K,) by which all classes count alike; their mean over the images is 1.

    These are scikit-learn's "balanced" ones.
    """
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1))


def epoch_positions(
    split: DatasetSplit, classes: int, balance: str, generator: torch.Generator
) -> np.ndarray:
    """Positions of the images of an epoch, in random order.

    With the balance "sampler" they are drawn with replacement, each class equally often.
    """
    if balance == "sampler":
        labels = split.labels[split.rows]
        weights = torch.from_numpy(class_weights(labels, classes)[labels])
        return torch.multinomial(weights, len(split), replacement=True, generator=generator).numpy()
    return torch.randperm(len(split), generator=generator).numpy()
