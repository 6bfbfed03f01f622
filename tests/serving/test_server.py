"""A published model behind ``python -m stages.serve``, as ``make serve`` starts it."""

import collections
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event, Thread

import psutil
import pytest

from stages.core.paths import weights_path
from stages.serve import MAX_CONNECTIONS
from stages.serving.card import ModelCard
from stages.serving.predictor import ImagePredictor
from stages.serving.request_guard import MAX_BODY
from tests.helpers.projects import run
from tests.helpers.serving_requests import INVALID_REQUESTS, to_base64

REQUESTS, AT_A_TIME = int(os.environ.get("FUZZ_REQUESTS", "300")), 20
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(pipeline_project, tmp_path_factory):
    """The address of a server, the folder of the project whose model it serves, and its process."""
    folder = tmp_path_factory.mktemp("served") / "project"
    # Without the database: it holds absolute paths of artifacts.
    shutil.copytree(
        pipeline_project,
        folder,
        symlinks=True,
        ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"),
    )
    python = [sys.executable, "-m"]
    for model in ("clean", "adv", "adv"):
        output = run(*python, "stages.publish", model, cwd=folder)
    assert "@champion is version 2, adv" in output, "the same model again is no new version"
    code = folder / "stages/photographs/decoding.py"
    code.write_text(code.read_text() + "# changed\n")
    assert "@champion is version 3, adv" in run(*python, "stages.publish", "adv", cwd=folder)
    code.write_text("raise AssertionError('the published model has its own code')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"MLFLOW_TRACKING_URI": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    settings["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "600"  # a busy machine
    with (folder / "server.log").open("w") as log:
        command = [*python, "stages.serve", "--port", port]
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"127.0.0.1:{port}", folder, process
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in (folder / "server.log").read_text().rpartition("Shutting down")[2]
    finally:
        process.kill()
        process.wait()


def post(address, image=None, body=None, headers=JSON):
    """Status and body of the server's response; a body in parts is sent without a Content-Length."""
    body = image_request(image) if body is None else body
    connection = http.client.HTTPConnection(address, timeout=600)
    try:
        connection.request("POST", "/invocations", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def image_request(*images) -> bytes:
    return json.dumps(
        {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}
    ).encode()


@pytest.mark.slow
def test_server_predicts_and_refuses_invalid_requests(server):
    address, folder, _ = server
    content = to_base64((folder / "data/few/Type_2/0.jpg").read_bytes())
    status, first = post(address, content)
    assert status == 200, first
    (prediction,) = json.loads(first)["predictions"]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    expected = json.loads((folder / "metrics/evaluate.json").read_text())["adv"]
    assert prediction["robust_accuracy"]["low"] == expected["robust_accuracy_worst_low"]

    for case, (image, reason) in INVALID_REQUESTS.items():
        status, message = post(address, image)
        assert (status, reason in message) == (400, True), (case, status, message)
    status, message = post(address, body=b" " * (MAX_BODY + 1))
    assert (status, "at most 48 MiB" in message) == (413, True), message
    for kind in ("text/plain", "text/csv", "application/json; charset=latin-1"):
        assert post(address, content, headers={"Content-Type": kind})[0] == 415, kind
    assert post(address, content, headers={"Accept": "*/*"})[0] == 415
    assert post(address, content) == (200, first)


@pytest.mark.slow
def test_server_listens_on_loopback_only(server):
    address, _, process = server
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    sockets = [
        connection for process in processes for connection in process.net_connections("inet")
    ]
    listening = [
        "{}:{}".format(*found.laddr) for found in sockets if found.status == psutil.CONN_LISTEN
    ]
    assert listening == [address]


@pytest.mark.slow
def test_too_many_connections_get_status_503(server):
    address, folder, _ = server
    content = to_base64((folder / "data/few/Type_2/0.jpg").read_bytes())
    host, port = address.split(":")
    with ExitStack() as stack:
        for number in range(MAX_CONNECTIONS):
            assert number < MAX_CONNECTIONS - 1 or post(address, content)[0] == 200
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(
                b"POST /invocations HTTP/1.1\r\n"
            )
            time.sleep(0.05)
        assert post(address, content)[0] == 503
    time.sleep(1)
    assert post(address, content)[0] == 200


def make_requests(folder):
    """Name -> (headers, body or its parts, valid status, classes if that is 200), of small requests; the same of large ones."""
    card = ModelCard.from_json(
        next((folder / "mlartifacts/models").rglob("card.json")).read_text(encoding="utf-8")
    )
    predictor = ImagePredictor(folder / weights_path("adv"), card)
    files = [(folder / f"data/few/Type_{1 + i % 3}/{i}.jpg").read_bytes() for i in range(12)]
    pixels = [predictor.preprocess(file) for file in files]
    classes = [predictor.classes[row.argmax()] for row in predictor.predict_proba(pixels)]
    records = json.dumps(
        {"dataframe_records": [{"image": to_base64(file)} for file in files]}
    ).encode()
    small = {
        f"file {i}": (JSON, image_request(to_base64(file)), 200, classes[i : i + 1])
        for i, file in enumerate(files)
    }
    small |= {
        f"array {i}": (JSON, image_request(array.tolist()), 200, classes[i : i + 1])
        for i, array in enumerate(pixels)
    }
    small |= {
        "records": (JSON, records, 200, classes),
        "in parts": (JSON, [records[:999], records[999:]], 200, classes),
    }
    small |= {
        f"invalid image: {case}": (JSON, image_request(image), 400, None)
        for case, (image, _) in INVALID_REQUESTS.items()
        if case != "34 MB"
    }
    invalid = {
        "empty": b"",
        "truncated": records[:-5],
        "random bytes": random.Random(0).randbytes(10**5),  # noqa: S311
        "list": b"[]",
        "nested deeply": b"[" * 10**5,
        "many digits": b'{"inputs": ' + b"9" * 5000 + b"}",
        "NaN": b'{"dataframe_split": {"columns": ["image"], "data": [[NaN]]}}',
        "wrong types": b'{"dataframe_split": {"columns": [["image"]], "data": 1}}',
        "other column": b'{"dataframe_records": [{"picture": "x"}]}',
        "too many images": image_request(*["x"] * 65),
    }
    small |= {case: (JSON, body, 400, None) for case, body in invalid.items()}
    small |= {
        "no Content-Type": ({}, records, 415, None),
        "CSV": ({"Content-Type": "text/csv"}, b"image\nx\n", 415, None),
    }
    large = {
        "image of 34 MB": (JSON, image_request(INVALID_REQUESTS["34 MB"][0]), 400, None),
        "50 MB of a string": (JSON, b'{"inputs": "' + b"a" * (50 * 10**6) + b'"}', 400, None),
        "50 MB of bytes": (JSON, b"\xff" * (50 * 10**6), 400, None),
        "50 MB of lists": (JSON, b'{"inputs": [' + b"[]," * (16 * 10**6) + b"0]}", 413, None),
        "as many objects as may be": (
            JSON,
            b'{"inputs": {"image": [' + b'{"a":1},' * (2**21 - 9) + b"0]}}",
            400,
            None,
        ),
        "as many numbers as may be": (
            JSON,
            image_request(None).replace(b"null", b"[" + b"1," * (2**22 - 99) + b"1]"),
            400,
            None,
        ),
        "60 MB": (JSON, b" " * (60 * 10**6), 413, None),
        "60 MB in parts": (JSON, [b" " * 10**6] * 60, 413, None),
    }
    return small, large


def send_all(address, process, small, large, number):
    """Sends `number` requests, AT_A_TIME, every 100th of them large.

    Returns:
        case -> status -> number of responses; wrong responses; peak resident memory in bytes of the server.
    """
    small, large = itertools.cycle(small.items()), itertools.cycle(large.items())
    planned = [next(large if i % 100 == 50 else small) for i in range(number)]
    found, wrong, memory, finished = collections.defaultdict(collections.Counter), [], [], Event()

    def send(request):
        case, (headers, body, expected, classes) = request
        status, content = post(address, body=body, headers=headers)
        found[case][status] += 1
        if status != expected or (
            classes and [each["class"] for each in json.loads(content)["predictions"]] != classes
        ):
            wrong.append((case, status, content[:500]))

    def watch():
        while not finished.wait(0.05):
            memory.append(psutil.Process(process.pid).memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(send, planned))
    finished.set()
    watcher.join()
    return found, wrong, max(memory)


@pytest.mark.slow
def test_every_request_gets_the_right_response_in_bounded_memory(server):
    address, folder, process = server
    found, wrong, peak = send_all(address, process, *make_requests(folder), REQUESTS)
    assert not wrong, wrong[:5]
    assert sum(map(collections.Counter.total, found.values())) == REQUESTS
    assert peak < 4e9
    assert psutil.Process(process.pid).memory_info().rss < 2.5e9


@pytest.mark.slow
def test_published_artifacts_contain_no_pickle(server):
    _, folder, _ = server
    artifacts = list((folder / "mlartifacts/models").glob("*/artifacts/artifacts/*"))
    assert {file.suffix for file in artifacts} == {".safetensors", ".json"}
    assert not list((folder / "mlartifacts").rglob("*.pkl"))
