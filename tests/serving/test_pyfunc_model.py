"""The model that MLflow serves: input formats, content of a prediction, invalid input."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.helpers.serving_requests import CARD, INVALID_REQUESTS, image_file, to_base64


@pytest.fixture(scope="module")
def served_model(weights, tmp_path_factory):
    from stages.serving.pyfunc_model import ServedModel

    card = tmp_path_factory.mktemp("card") / "card.json"
    card.write_text(CARD.to_json(), encoding="utf-8")
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"weights": str(weights), "card": str(card)}))
    return model


def test_bytes_base64_array_and_list_give_same_prediction(served_model):
    pixels = served_model.predictor.preprocess(image_file())
    images = [image_file(), to_base64(image_file()), pixels, pixels.tolist()]
    first, *others = served_model.predict(None, pd.DataFrame({"image": images}))
    for other in others:
        assert other["class"] == first["class"]
        assert other["probabilities"] == pytest.approx(first["probabilities"], abs=1e-6)


def test_prediction_has_class_robust_accuracy_and_disclaimer(served_model):
    (prediction,) = served_model.predict(None, pd.DataFrame({"image": [image_file()]}))
    assert prediction["class"] == max(
        prediction["probabilities"], key=prediction["probabilities"].get
    )
    assert prediction["robust_accuracy"]["value"] == CARD.robust_accuracy_worst.value
    assert "Not a medical device" in prediction["notice"]
    assert "synthetic" in prediction["notice"]
    json.dumps(prediction)


@pytest.mark.parametrize("case", INVALID_REQUESTS)
def test_invalid_image_is_refused_with_status_400_and_reason(served_model, case):
    from mlflow.exceptions import MlflowException

    image, reason = INVALID_REQUESTS[case]
    with pytest.raises(MlflowException) as refused:
        served_model.predict(
            None, pd.DataFrame({"image": pd.Series([to_base64(image_file()), image], dtype=object)})
        )
    assert refused.value.get_http_status_code() == 400
    assert refused.value.message.startswith("image 1: ")
    assert reason in refused.value.message
    assert len(refused.value.message) < 500


def predict(served_model, images):
    return served_model.predict(None, pd.DataFrame({"image": pd.Series(images, dtype=object)}))


def test_number_of_images_is_limited(served_model):
    from mlflow.exceptions import MlflowException

    from stages.serving.pyfunc_model import MAX_IMAGES

    assert len(predict(served_model, [image_file()] * MAX_IMAGES)) == MAX_IMAGES
    with pytest.raises(
        MlflowException, match=f"expected at most {MAX_IMAGES} images, got {MAX_IMAGES + 1}"
    ) as refused:
        predict(served_model, [image_file()] * (MAX_IMAGES + 1))
    assert refused.value.get_http_status_code() == 400


def test_bug_has_status_500(served_model, monkeypatch):
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr(served_model.predictor, "predict_proba", lambda pixels: 1 / 0)
    with pytest.raises(MlflowException, match="prediction failed: ZeroDivisionError") as failed:
        predict(served_model, [image_file()])
    assert failed.value.get_http_status_code() == 500
