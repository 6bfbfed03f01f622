"""From a photograph's bytes to an answer: what preprocess does to the pixels, then the network. For use after training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.core import models
from stages.core.batches import Split
from stages.core.ensemble import score
from stages.core.model_card import Card
from stages.core.photographs import read_photograph

BATCH = 64  # pictures in one pass


class PhotographClassifier:
    """A saved model, on the CPU, with the preprocessing that it was trained with."""

    def __init__(self, weights: Path, card: Card) -> None:
        self.model, self.card = models.load(weights), card
        self.classes, self.size = self.model.classes, self.model.image_size

    def pixels(self, content: bytes) -> np.ndarray:
        """A photograph's file -> uint8 (size, size, 3), the very pixels that preprocess stores; BadPhotographError."""
        return read_photograph(content, self.size, self.card.crop, self.card.usable_part).pixels

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """N times uint8 (size, size, 3) -> float32 (N, K), in the order of the classes."""
        answers = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(pixels), BATCH):
            images = np.stack(pixels[start : start + BATCH])  # (B, size, size, 3)
            rows = np.arange(len(images))
            x, _ = Split(images, np.zeros(len(images), np.int64), rows).batch(rows, torch.device("cpu"))
            answers.append(score(self.model, x).softmax(1).numpy())
        return np.concatenate(answers)
