"""A model and the images that it is evaluated on."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from stages.attacks.attack import Noise
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.models.packed import for_attacks


@dataclass(frozen=True)
class Batch:
    """Images of a split: positions (B,) in it, x (B, 3, H, W), y (B,), and their noise."""

    positions: np.ndarray
    x: Tensor
    y: Tensor
    noise: Noise

    def where(self, chosen: Tensor) -> "Batch":
        """The images where ``chosen`` (B,) is true."""
        rows = chosen.cpu().numpy()
        return Batch(self.positions[rows], self.x[chosen], self.y[chosen], self.noise.of(chosen))


@dataclass(frozen=True)
class TargetModel:
    """A model and the N images of a split that it is evaluated on.

    Attributes:
        fabric: device and precision.
        model: what is evaluated.
        fused_model: the same function, cheaper to differentiate: what attacks are computed on.
        split: the images.
        batch_size: images attacked at once; changes results by rounding at most.
        seed: of the noise.
    """

    fabric: Fabric
    model: nn.Module
    fused_model: nn.Module
    split: DatasetSplit
    batch_size: int
    seed: int

    @classmethod
    def of(
        cls, network: Classifier, fabric: Fabric, split: DatasetSplit, batch_size: int, seed: int
    ) -> Self:
        """The classifier on the device, frozen, to be evaluated on these images."""
        network = network.to(fabric.device).eval().requires_grad_(False)
        attacked = for_attacks(network, fabric)
        return cls(fabric, network, attacked, split, batch_size, seed)

    @property
    def labels(self) -> Tensor:
        """(N,) on the CPU."""
        return torch.from_numpy(self.split.labels[self.split.rows])

    @property
    def everything(self) -> np.ndarray:
        """(N,) the positions of all images."""
        return np.arange(len(self.split))

    def on(self, split: DatasetSplit) -> Self:
        """The same model on other images."""
        return replace(self, split=split)

    def stratified(self, positions: np.ndarray, count: int) -> np.ndarray:
        """At most ``count`` of these positions, each class in its proportion."""
        return positions[self.split.subset(positions).stratified_positions(count, self.seed)]

    def load(self, positions: np.ndarray) -> Batch:
        """The images at these positions."""
        x, y = self.split.load(positions, self.fabric.device)
        return Batch(positions, x, y, Noise(self.seed, self.split.rows[positions], x))
