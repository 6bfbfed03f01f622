"""A published model behind ``mlflow models serve``."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.helpers.projects import run
from tests.helpers.serving_requests import INVALID_REQUESTS, to_base64


@pytest.fixture(scope="module")
def server(pipeline_project, tmp_path_factory):
    """The address of a server, and the folder of the project whose model it serves."""
    folder = tmp_path_factory.mktemp("served") / "project"
    # Without the database: it holds absolute paths of artifacts.
    shutil.copytree(pipeline_project, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    python = [sys.executable, "-m"]
    for model in ("clean", "adv", "adv"):
        output = run(*python, "stages.publish", model, cwd=folder)
    assert "@champion is version 2, adv" in output, "the same model again is no new version"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*python, "mlflow", "models", "serve", "-m", "models:/colposcopy-classifier@champion", "--env-manager", "local"]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    settings["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "600"  # a busy machine
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
            cwd=tmp_path_factory.mktemp("elsewhere"),  # the published model includes its code
            env={**os.environ, **settings, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"127.0.0.1:{port}", folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(address, image=None, body=None, **headers):
    """Status and body of the server's response."""
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}) if body is None else body
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request("POST", "/invocations", body.encode(), headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.slow
def test_server_predicts_refuses_invalid_requests_and_keeps_running(server):
    address, folder = server
    content = to_base64((folder / "data/few/Type_2/0.jpg").read_bytes())
    status, first = post(address, content)
    assert status == 200, first
    (prediction,) = json.loads(first)["predictions"]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    expected = json.loads((folder / "metrics/evaluate.json").read_text())["adv"]
    assert prediction["robust_accuracy"]["low"] == expected["robust_accuracy_worst_low"]

    for case, (image, reason) in INVALID_REQUESTS.items():
        status, message = post(address, image)
        assert 400 <= status < 500, (case, status, message[:500])
        assert reason in message, (case, message[:500])
        assert len(message) < 5000, case
    for body in ("", "{", "[]", '{"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}', "x" * 10**6):
        status, message = post(address, body=body)
        assert 400 <= status < 500, (body[:50], status, message[:500])
    for kind in ("text/plain", "image/jpeg", "application/json; charset=latin-1"):
        status, message = post(address, content, **{"Content-Type": kind})
        assert status == 415, (kind, status, message[:500])
    # These fail in MLflow's own code, before the model is called.
    for response in (post(address, content, Accept="*/*"), post(address, body="[" * 10**5), post(address, body="9" * 5000)):
        assert response == (500, "Internal Server Error"), "MLflow has fixed it: update the README"
    assert post(address, content) == (200, first)


@pytest.mark.slow
def test_published_artifacts_contain_no_pickle(server):
    _, folder = server
    artifacts = list((folder / "mlartifacts/models").glob("*/artifacts/artifacts/*"))
    assert {file.suffix for file in artifacts} == {".safetensors", ".json"}
    assert not list((folder / "mlartifacts").rglob("*.pkl"))
