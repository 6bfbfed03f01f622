"""The model that MLflow loads and serves: published as this file, the weights and the card beside it. No pickle.

A request has one column, ``image``: a photograph's file in base64, or the nested list of a uint8 array (size, size, 3) such
as the store has. Each answer names the class, the probabilities, and the robust accuracy that the model was measured at.
What is no such picture is refused with status 400 and the reason.
"""

import base64
import binascii
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from stages.photographs.decoding import ImageDecodeError
from stages.serving.card import ModelCard
from stages.serving.predictor import ImagePredictor

MAX_BYTES = 32 * 2**20  # of one photograph


class ServedModel(PythonModel):
    def load_context(self, context: Any) -> None:
        card = ModelCard.from_json(Path(context.artifacts["card"]).read_text(encoding="utf-8"))
        self.classifier = ImagePredictor(Path(context.artifacts["weights"]), card)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict | None = None) -> list[dict[str, Any]]:
        """One answer for each row of the column ``image``: base64 text, bytes, or a uint8 array.

        Raises MlflowException, which the server answers with status 400.
        """
        pixels = []
        for row, image in enumerate(model_input["image"]):
            try:
                pixels.append(self._pixels(image))
            except (ImageDecodeError, ValueError) as error:
                raise MlflowException.invalid_parameter_value(f"image {row}: {error}") from None
        card = self.classifier.card
        measured = dataclasses.asdict(card.robust_accuracy_worst) | {
            "norm": card.norm,
            "eps": card.eps,
            "images": card.images,
            "confidence": card.confidence,
        }
        return [
            {
                "class": self.classifier.classes[int(answer.argmax())],
                "probabilities": dict(zip(self.classifier.classes, map(float, answer), strict=True)),
                "robust_accuracy": measured,
                "notice": card.notice(),
            }
            for answer in self.classifier.probabilities(pixels)
        ]

    def _pixels(self, image: Any) -> np.ndarray:
        """uint8 (size, size, 3); raises ValueError or ImageDecodeError."""
        if isinstance(image, str | bytes):
            if len(image) > MAX_BYTES:
                raise ValueError(f"expected a photograph of at most {MAX_BYTES // 2**20} MiB, got {len(image)} bytes")
            try:
                content = base64.b64decode(image, validate=True) if isinstance(image, str) else image
            except binascii.Error as error:
                raise ValueError(f"expected base64, got an error: {error}") from None
            return self.classifier.pixels(content)
        array, shape = np.array(image), (self.classifier.size, self.classifier.size, 3)  # a ragged list is a ValueError
        if array.shape != shape or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise ValueError(f"expected base64 or whole numbers 0..255 of shape {shape}, got {array.dtype} {array.shape}")
        return array.astype(np.uint8)


set_model(ServedModel())
