"""The model that MLflow serves, published as this file, weights and evaluation: no pickle.

A request has one column, ``image``: an image file in base64, or the nested list of a uint8 array
(size, size, 3) as in the processed dataset. Each prediction has the class, the probabilities, and
the model's measured robust accuracy. What is no such image is refused with status 400 and the
reason; a bug has status 500.
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
from stages.serving.evaluated_model import EvaluatedModel
from stages.serving.predictor import BATCH, ImagePredictor

MAX_BYTES = 32 * 2**20  # of one image, as it is sent
MAX_IMAGES = BATCH  # of one request: bounds its time, and the memory that decoded images take

logger = logging.getLogger(__name__)


class ServedModel(PythonModel):
    """Predicts on images that come as base64 or as arrays."""

    def load_context(self, context: Any) -> None:
        text = Path(context.artifacts["evaluation"]).read_text(encoding="utf-8")
        weights = Path(context.artifacts["weights"])
        self.predictor = ImagePredictor(weights, EvaluatedModel.from_json(text))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict | None = None
    ) -> list[dict[str, Any]]:
        """One prediction for each row of the column ``image``: base64, bytes, or a uint8 array.

        Raises:
            MlflowException: the server responds to an invalid request with status 400, to a bug
                with status 500.
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
        return [self._prediction(row) for row in self.predictor.predict_proba(pixels)]

    def _prediction(self, probabilities: np.ndarray) -> dict[str, Any]:
        """The response for one image, whose probabilities (K,) these are."""
        classes, evaluated = self.predictor.classes, self.predictor.evaluated
        robust_accuracy = dataclasses.asdict(evaluated.robust_accuracy_worst)
        for name in ("norm", "eps", "images", "confidence"):
            robust_accuracy[name] = getattr(evaluated, name)
        return {
            "class": classes[int(probabilities.argmax())],
            "probabilities": dict(zip(classes, map(float, probabilities), strict=True)),
            "robust_accuracy": robust_accuracy,
            "notice": evaluated.disclaimer(),
        }

    def _pixels(self, image: Any) -> np.ndarray:
        """The image as uint8 (size, size, 3); raises ValueError or ImageDecodeError."""
        if isinstance(image, str | bytes):
            return self.predictor.preprocess(_decode_base64(image))
        array = np.array(image)  # raises ValueError for a ragged list
        shape = (self.predictor.size, self.predictor.size, 3)
        is_image = array.shape == shape and array.dtype.kind in "iu"
        if not is_image or array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"expected base64 or whole numbers 0..255 of shape {shape}, "
                f"got {array.dtype} {array.shape}"
            )
        return array.astype(np.uint8)


def _decode_base64(image: str | bytes) -> bytes:
    """The content of an image file; raises ValueError."""
    if len(image) > MAX_BYTES:
        raise ValueError(
            f"expected an image of at most {MAX_BYTES // 2**20} MiB, got {len(image)} bytes"
        )
    if isinstance(image, bytes):
        return image
    try:
        return base64.b64decode(image, validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected base64, got an error: {error}") from None


set_model(ServedModel())
