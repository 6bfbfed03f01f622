"""Arbitrary requests to the served model, in this process: a prediction or status 4xx, no more."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.serving.request_guard import RequestGuard
from tests.helpers.evaluated_models import CLASSES, EVALUATED, save_model
from tests.helpers.repository import ROOT
from tests.helpers.serving_requests import (
    INVALID_REQUESTS,
    JSON,
    image_file,
    post_asgi,
    to_base64,
)

FEW = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SMALL_INVALID = [image for image, _ in INVALID_REQUESTS.values() if len(str(image)) < 10**5]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The server's ASGI application, with a small model that MLflow saved and loaded."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import scoring_server
    from mlflow.types.schema import AnyType, ColSpec, Schema

    folder = tmp_path_factory.mktemp("model")
    weights, evaluation = folder / "adv.safetensors", folder / "evaluation.json"
    save_model(weights)
    evaluation.write_text(EVALUATED.to_json(), encoding="utf-8")
    mlflow.pyfunc.save_model(
        folder / "saved",
        python_model=str(ROOT / "stages/serving/pyfunc_model.py"),
        artifacts={"weights": str(weights), "evaluation": str(evaluation)},
        pip_requirements=[],
        signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")])),
    )
    return RequestGuard(scoring_server.init(mlflow.pyfunc.load_model(str(folder / "saved"))))


def check(app, body, headers=JSON):
    """The status, after a check that the response is a valid prediction or a short reason."""
    status, content = post_asgi(app, [body], headers)
    answer = json.loads(content)
    if status == 200:
        for prediction in answer["predictions"]:
            assert prediction["class"] in CLASSES
            assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    else:
        assert 400 <= status < 500, (status, body[:500], content[:500])
        assert answer["message"]
        assert len(content) < 5000
    return status


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text()
    | st.sampled_from([to_base64(image_file()), "\ud800", "image", "2020-01-01", *SMALL_INVALID])
)
keys = st.text() | st.sampled_from(
    ["image", "columns", "data", "index", "inputs", "params", "input", "messages", "prompt"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
columns = st.lists(st.just("image") | scalars, max_size=3) | st.just(["image"]) | values
rows = st.lists(st.lists(values, min_size=1, max_size=2), max_size=3) | values
forms = st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances"])
requests = (
    values
    | st.builds(
        lambda columns, data: {"dataframe_split": {"columns": columns, "data": data}}, columns, rows
    )
    | st.builds(
        lambda images: {"dataframe_records": [{"image": image} for image in images]},
        st.lists(values, max_size=3),
    )
    | st.builds(lambda form, image: {form: {"image": image}}, forms, values)
    | st.builds(
        lambda form, image, more: {form: {"image": image}, **more},
        forms,
        values,
        st.dictionaries(keys, values, max_size=2),
    )
    | st.dictionaries(forms | keys, values, max_size=3)
)


@FEW
@given(request=requests)
def test_any_json_gets_prediction_or_status_4xx(app, request):
    check(app, json.dumps(request).encode())


@FEW
@given(
    body=st.binary() | st.text().map(str.encode),
    kind=st.sampled_from([*JSON.values(), "text/csv"]) | st.text(max_size=40),
)
def test_any_bytes_get_status_4xx(app, body, kind):
    assert check(app, body, {"content-type": kind.encode("utf-8").decode("latin-1")}) >= 400
