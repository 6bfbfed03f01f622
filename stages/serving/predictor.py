"""From an image file's bytes to a prediction: what preprocess does to the pixels, then the classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.inference import predict_logits
from stages.photographs.decoding import decode_image
from stages.serving.card import ModelCard

BATCH = 64  # images in one forward pass


class ImagePredictor:
    """A saved model, on the CPU, with the preprocessing that it was trained with."""

    def __init__(self, weights: Path, card: ModelCard) -> None:
        self.model, self.card = classifier.load(weights), card
        self.classes, self.size = self.model.classes, self.model.image_size

    def preprocess(self, content: bytes) -> np.ndarray:
        """A file's bytes -> uint8 (size, size, 3), the very pixels that the stage preprocess stores.

        Raises:
            ImageDecodeError: when the bytes give no usable image.
        """
        return decode_image(content, self.size, self.card.crop).pixels

    def predict_proba(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """N times uint8 (size, size, 3) -> float32 (N, K), in the order of the classes."""
        batches = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(pixels), BATCH):
            images = np.stack(pixels[start : start + BATCH])  # (B, size, size, 3)
            rows = np.arange(len(images))
            x, _ = DatasetSplit(images, np.zeros(len(images), np.int64), rows).load(
                rows, torch.device("cpu")
            )
            batches.append(predict_logits(self.model, x).softmax(1).numpy())
        return np.concatenate(batches)
