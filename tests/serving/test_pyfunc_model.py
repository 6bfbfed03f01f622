"""The model that MLflow serves: input formats, content of a prediction, invalid input."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from stages.serving.pyfunc_model import MAX_IMAGES, ServedModel
from tests.helpers.evaluated_models import EVALUATED
from tests.helpers.serving_requests import INVALID_REQUESTS, image_file, to_base64


@pytest.fixture(scope="module")
def served_model(weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    file.write_text(EVALUATED.to_json(), encoding="utf-8")
    model = ServedModel()
    artifacts = {"weights": str(weights), "evaluation": str(file)}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model


def predict(served_model, *images):
    return served_model.predict(None, pd.DataFrame({"image": pd.Series(images, dtype=object)}))


def test_bytes_base64_array_and_list_give_same_prediction(served_model):
    pixels = served_model.predictor.preprocess(image_file())
    images = [image_file(), to_base64(image_file()), pixels, pixels.tolist()]
    first, *others = predict(served_model, *images)
    for other in others:
        assert other["class"] == first["class"]
        assert other["probabilities"] == pytest.approx(first["probabilities"], abs=1e-6)


def test_prediction_has_class_robust_accuracy_and_disclaimer(served_model):
    (prediction,) = json.loads(json.dumps(predict(served_model, image_file())))
    probabilities = prediction["probabilities"]
    assert prediction["class"] == max(probabilities, key=probabilities.get)
    assert prediction["robust_accuracy"]["value"] == EVALUATED.robust_accuracy_worst.value
    assert "Not a medical device" in prediction["notice"]
    assert "synthetic" in prediction["notice"]


@pytest.mark.parametrize("case", INVALID_REQUESTS)
def test_invalid_image_is_refused_with_status_400_and_reason(served_model, case):
    image, reason = INVALID_REQUESTS[case]
    with pytest.raises(MlflowException) as refused:
        predict(served_model, to_base64(image_file()), image)
    assert refused.value.get_http_status_code() == 400
    assert refused.value.message.startswith("image 1: ")
    assert reason in refused.value.message
    assert len(refused.value.message) < 500


def test_number_of_images_is_limited(served_model):
    assert len(predict(served_model, *[image_file()] * MAX_IMAGES)) == MAX_IMAGES
    with pytest.raises(MlflowException, match=f"expected at most {MAX_IMAGES} images") as refused:
        predict(served_model, *[image_file()] * (MAX_IMAGES + 1))
    assert refused.value.get_http_status_code() == 400


def test_bug_has_status_500(served_model, monkeypatch):
    monkeypatch.setattr(served_model.predictor, "predict_proba", lambda pixels: 1 / 0)
    with pytest.raises(MlflowException, match="prediction failed: ZeroDivisionError") as failed:
        predict(served_model, image_file())
    assert failed.value.get_http_status_code() == 500
