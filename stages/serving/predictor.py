"""From an image file to a prediction: what preprocess does to the pixels, then the classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.inference import predict_logits
from stages.photographs.decoding import decode_image
from stages.serving.evaluated_model import EvaluatedModel

BATCH = 64  # images in one forward pass: bounds memory


class ImagePredictor:
    """A saved model, on the CPU, with the preprocessing that it was trained with."""

    def __init__(self, weights: Path, evaluated: EvaluatedModel) -> None:
        self.model, self.evaluated = classifier.load(weights), evaluated
        self.classes, self.size = self.model.classes, self.model.image_size

    def preprocess(self, content: bytes) -> np.ndarray:
        """A file's bytes -> uint8 (size, size, 3), the very pixels that preprocess stores.

        Raises:
            ImageDecodeError: when the bytes give no usable image.
        """
        return decode_image(content, self.size, self.evaluated.crop).pixels

    def predict_proba(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """N times uint8 (size, size, 3) -> float32 (N, K), in the order of the classes.

        All in one forward pass: N should not exceed BATCH.
        """
        if not pixels:
            return np.empty((0, len(self.classes)), np.float32)
        rows = np.arange(len(pixels))
        split = DatasetSplit(np.stack(pixels), np.zeros(len(pixels), np.int64), rows)
        x, _ = split.load(rows, torch.device("cpu"))
        return predict_logits(self.model, x).softmax(1).numpy()
