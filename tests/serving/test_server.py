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
from stages.serving.evaluated_model import EvaluatedModel
from stages.serving.predictor import ImagePredictor
from stages.serving.request_guard import MAX_BODY
from tests.helpers.evaluated_models import write_results
from tests.helpers.projects import run
from tests.helpers.repository import ROOT
from tests.helpers.serving_requests import INVALID_REQUESTS, image_file, to_base64

pytestmark = pytest.mark.slow
REQUESTS, AT_A_TIME = int(os.environ.get("FUZZ_REQUESTS", "300")), 20
JSON = {"Content-Type": "application/json"}


def publish(folder) -> str:
    return run(sys.executable, "-m", "stages.publish", "adv", cwd=folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the results of a pipeline, no git repository, whose model is published."""
    folder = tmp_path_factory.mktemp("server")
    write_results(folder, "resnet18")
    shutil.copytree(ROOT / "stages", folder / "stages")
    for name in ("dvc.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    assert "@champion is version 1, adv" in publish(folder)
    assert "@champion is version 1, adv" in publish(folder), "the same model is no new version"
    code = folder / "stages/photographs/decoding.py"
    code.write_text(code.read_text() + "# changed\n")
    assert "@champion is version 2, adv" in publish(folder), "other code is a new version"
    code.write_text("raise AssertionError('the published model has its own code')")
    return folder


@pytest.fixture(scope="module")
def server(project):
    """The address of a server of that model, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    env["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "600"  # a busy machine
    log = project / "server.log"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "stages.serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=project, env=env, stdout=stream, stderr=stream)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"127.0.0.1:{port}", process
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in log.read_text().rpartition("Shutting down")[2]
    finally:
        process.kill()
        process.wait()


def post(address, body, headers=JSON):
    """Status and body of the response; a body in parts is sent without a Content-Length."""
    connection = http.client.HTTPConnection(address, timeout=600)
    try:
        connection.request("POST", "/invocations", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def image_request(*images) -> bytes:
    rows = [[image] for image in images]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()


VALID_REQUEST = image_request(to_base64(image_file()))


def test_prediction_comes_with_measured_robust_accuracy(server):
    status, content = post(server[0], VALID_REQUEST)
    assert status == 200, content
    (prediction,) = json.loads(content)["predictions"]
    assert prediction["robust_accuracy"]["low"] == 0.4


def test_refusal_says_why(server):
    for case, (image, reason) in INVALID_REQUESTS.items():
        status, message = post(server[0], image_request(image))
        assert (status, reason in message) == (400, True), (case, status, message)
    status, message = post(server[0], b" " * (MAX_BODY + 1))
    assert (status, "at most 48 MiB" in message) == (413, True), message


def test_server_listens_on_loopback_only(server):
    address, process = server
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    sockets = [found for each in processes for found in each.net_connections("inet")]
    listening = [found.laddr for found in sockets if found.status == psutil.CONN_LISTEN]
    assert ["{}:{}".format(*found) for found in listening] == [address]


def test_too_many_connections_get_status_503(server):
    address = server[0]
    host, port = address.split(":")
    with ExitStack() as stack:
        for number in range(MAX_CONNECTIONS):
            assert number < MAX_CONNECTIONS - 1 or post(address, VALID_REQUEST)[0] == 200
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"POST /invocations HTTP/1.1\r\n")
            time.sleep(0.05)
        assert post(address, VALID_REQUEST)[0] == 503
    time.sleep(1)
    assert post(address, VALID_REQUEST)[0] == 200


def make_requests(project):
    """Small requests and large ones: name -> (headers, body or its parts, status, classes)."""
    evaluation = next((project / "mlartifacts/models").rglob("evaluation.json"))
    evaluated = EvaluatedModel.from_json(evaluation.read_text(encoding="utf-8"))
    predictor = ImagePredictor(project / weights_path("adv"), evaluated)
    files = [image_file(seed) for seed in range(12)]
    pixels = [predictor.preprocess(file) for file in files]
    classes = [predictor.classes[row.argmax()] for row in predictor.predict_proba(pixels)]
    images = [{"image": to_base64(file)} for file in files]
    records = json.dumps({"dataframe_records": images}).encode()
    small = {
        "records": (JSON, records, 200, classes),
        "in parts": (JSON, [records[:999], records[999:]], 200, classes),
        "no Content-Type": ({}, records, 415, None),
        "CSV": ({"Content-Type": "text/csv"}, b"image\nx\n", 415, None),
        "latin-1": ({"Content-Type": "application/json; charset=latin-1"}, records, 415, None),
    }
    for i, (file, array) in enumerate(zip(files, pixels, strict=True)):
        small[f"file {i}"] = (JSON, image_request(to_base64(file)), 200, classes[i : i + 1])
        small[f"array {i}"] = (JSON, image_request(array.tolist()), 200, classes[i : i + 1])
    many = b"1," * (2**22 - 99)
    objects = b'{"a":1},' * (2**21 - 9)
    refused = {
        "empty": b"",
        "truncated": records[:-5],
        "random bytes": random.Random(0).randbytes(10**5),  # noqa: S311
        "nested deeply": b"[" * 10**5,
        "many digits": b'{"inputs": ' + b"9" * 5000 + b"}",
        "NaN": b'{"dataframe_split": {"columns": ["image"], "data": [[NaN]]}}',
        "wrong types": b'{"dataframe_split": {"columns": [["image"]], "data": 1}}',
        "other column": b'{"dataframe_records": [{"picture": "x"}]}',
        "too many images": image_request(*["x"] * 65),
        "50 MB of a string": b'{"inputs": "' + b"a" * (50 * 10**6) + b'"}',
        "50 MB of bytes": b"\xff" * (50 * 10**6),
        "as many objects as may be": b'{"inputs": {"image": [' + objects + b"0]}}",
        "as many numbers as may be": image_request(None).replace(b"null", b"[" + many + b"1]"),
    }
    for case, (image, _) in INVALID_REQUESTS.items():
        refused[f"invalid image: {case}"] = image_request(image)
    large = {
        "50 MB of lists": (JSON, b'{"inputs": [' + b"[]," * (16 * 10**6) + b"0]}", 413, None),
        "60 MB": (JSON, b" " * (60 * 10**6), 413, None),
        "60 MB in parts": (JSON, [b" " * 10**6] * 60, 413, None),
    }
    for case, body in refused.items():
        (large if len(body) > 10**6 else small)[case] = (JSON, body, 400, None)
    return small, large


def send_all(address, process, small, large, number):
    """Sends `number` requests, AT_A_TIME, every 100th of them large.

    Returns:
        The wrong responses, the number of all, and the server's peak resident memory in bytes.
    """
    small, large = itertools.cycle(small.items()), itertools.cycle(large.items())
    planned = [next(large if i % 100 == 50 else small) for i in range(number)]
    statuses, wrong, memory, finished = collections.Counter(), [], [], Event()

    def send(request):
        case, (headers, body, expected, classes) = request
        status, content = post(address, body, headers)
        statuses[status] += 1
        right = status == expected
        if right and classes:
            right = [each["class"] for each in json.loads(content)["predictions"]] == classes
        if not right:
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
    return wrong, statuses.total(), max(memory)


def test_every_request_gets_the_right_response_in_bounded_memory(project, server):
    address, process = server
    wrong, count, peak = send_all(address, process, *make_requests(project), REQUESTS)
    assert not wrong, wrong[:5]
    assert count == REQUESTS
    assert peak < 4e9
    assert psutil.Process(process.pid).memory_info().rss < 2.5e9


def test_published_artifacts_contain_no_pickle(project):
    artifacts = list((project / "mlartifacts/models").glob("*/artifacts/artifacts/*"))
    assert {file.suffix for file in artifacts} == {".safetensors", ".json"}
    assert not list((project / "mlartifacts").rglob("*.pkl"))
