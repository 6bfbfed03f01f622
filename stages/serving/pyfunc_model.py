"""The model that MLflow loads and serves: published as this file, the weights and the card. No pickle.

A request has one column, ``image``: an image file in base64, or the nested list of a uint8 array (size, size, 3) as in the
processed dataset. Each prediction has the class, the probabilities, and the model's measured robust accuracy. What is no such
image is refused with status 400 and the reason; a bug has status 500.
"""

import base64
import binascii
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PythonModel

from stages.photographs.decoding import ImageDecodeError
from stages.serving.card import ModelCard
from stages.serving.predictor import BATCH, ImagePredictor

MAX_BYTES = 32 * 2**20  # of one image, as it is sent
MAX_IMAGES = BATCH  # of one request: bounds its time, and its memory, which in pixels may be many times that of the files

logger = logging.getLogger(__name__)


class ServedModel(PythonModel):
    """Predicts on images that come as base64 or as arrays."""

    def load_context(self, context: Any) -> None:
        card = ModelCard.from_json(Path(context.artifacts["card"]).read_text(encoding="utf-8"))
        self.predictor = ImagePredictor(Path(context.artifacts["weights"]), card)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict | None = None
    ) -> list[dict[str, Any]]:
        """One prediction for each row of the column ``image``: base64 text, bytes, or a uint8 array.

        Raises:
            MlflowException: for an invalid request; the server then responds with status 400. For a bug, with status 500.
        """
        try:
            return self._predict(model_input)
        except MlflowException:
            raise
        except Exception as error:  # a bug, for which MLflow would respond with status 400
            logger.exception("prediction failed")
            raise MlflowException(
                f"prediction failed: {type(error).__name__}", INTERNAL_ERROR
            ) from error

    def _predict(self, model_input: pd.DataFrame) -> list[dict[str, Any]]:
        if len(model_input) > MAX_IMAGES:
            raise MlflowException.invalid_parameter_value(
                f"expected at most {MAX_IMAGES} images, got {len(model_input)}"
            )
        pixels = []
        for number, image in enumerate(model_input["image"]):
            try:
                pixels.append(self._pixels(image))
            except (ImageDecodeError, ValueError) as error:
                raise MlflowException.invalid_parameter_value(f"image {number}: {error}") from None
        card = self.predictor.card
        measured = dataclasses.asdict(card.robust_accuracy_worst) | {
            "norm": card.norm,
            "eps": card.eps,
            "images": card.images,
            "confidence": card.confidence,
        }
        return [
            {
                "class": self.predictor.classes[int(row.argmax())],
                "probabilities": dict(zip(self.predictor.classes, map(float, row), strict=True)),
                "robust_accuracy": measured,
                "notice": card.disclaimer(),
            }
            for row in self.predictor.predict_proba(pixels)
        ]

    def _pixels(self, image: Any) -> np.ndarray:
        """The image as uint8 (size, size, 3); raises ValueError or ImageDecodeError."""
        if isinstance(image, str | bytes):
            if len(image) > MAX_BYTES:
                raise ValueError(
                    f"expected an image of at most {MAX_BYTES // 2**20} MiB, got {len(image)} bytes"
                )
            try:
                content = (
                    base64.b64decode(image, validate=True) if isinstance(image, str) else image
                )
            except binascii.Error as error:
                raise ValueError(f"expected base64, got an error: {error}") from None
            return self.predictor.preprocess(content)
        array, shape = (
            np.array(image),
            (self.predictor.size, self.predictor.size, 3),
        )  # a ragged list is a ValueError
        if (
            array.shape != shape
            or array.dtype.kind not in "iu"
            or array.min() < 0
            or array.max() > 255
        ):
            raise ValueError(
                f"expected base64 or whole numbers 0..255 of shape {shape}, got {array.dtype} {array.shape}"
            )
        return array.astype(np.uint8)


set_model(ServedModel())
