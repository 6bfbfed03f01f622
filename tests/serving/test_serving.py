"""A trained model in use: the same pixels as in training, honest about what it is, unimpressed by hostile input."""

import base64
import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages import predict
from stages.core.dataset import load_dataset
from stages.core.errors import InputError
from stages.models import classifier, initialization
from stages.photographs.decoding import decode_image
from stages.serving.card import Estimate, ModelCard, read_card
from stages.serving.predictor import BATCH, ImagePredictor
from stages.tracking.stage_outputs import md5
from tests.helpers.projects import run

SIZE = 32
CARD = ModelCard("adv", "0", "cervix", 1.0, True, "linf", 8 / 255, 12, 0.95, Estimate(0.9, 0.8, 1.0), Estimate(0.4, 0.3, 0.5))


def photograph(kind="JPEG", size=(90, 70), seed=0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """A small PNG file that says it holds 400 million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


HOSTILE = {
    "no base64": ("%%%", "expected base64"),
    "no image": (text(b"<html>"), "not an image"),
    "nothing": ("", "empty"),
    "cut off": (text(photograph()[:-200]), "truncated"),
    "bomb": (text(bomb()), "too large: more than 80000000 pixels"),
    "50 MB": (text(bytes(50 * 10**6)), "at most 32 MiB"),
    "wrong shape": (np.zeros((SIZE, SIZE), int).tolist(), f"shape ({SIZE}, {SIZE}, 3)"),
    "ragged": ([[1, 2], [3]], "inhomogeneous"),
    "out of range": (np.full((SIZE, SIZE, 3), 256).tolist(), "0..255"),
    "fractions": (np.full((SIZE, SIZE, 3), 0.5).tolist(), "whole numbers"),
    "number": (7, "shape"),
    "null": (None, "shape"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "adv.safetensors"
    classifier.save(file, initialization.create_model("squeezenet1_1", ("a", "b", "c"), SIZE, "none", "none", 0))
    return file


@pytest.fixture(scope="module")
def served(weights):
    from stages.serving.pyfunc_model import ServedModel

    card = weights.with_name("card.json")
    card.write_text(CARD.to_json(), encoding="utf-8")
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"weights": str(weights), "card": str(card)}))
    return model


def test_a_card_survives_its_file():
    assert ModelCard.from_json(CARD.to_json()) == CARD


@pytest.mark.parametrize("crop", ["none", "square", "cervix"])
def test_pixels_are_cut_as_the_card_says(weights, crop):
    classifier = ImagePredictor(weights, ModelCard(**{**vars(CARD), "crop": crop}))
    assert np.array_equal(classifier.pixels(photograph()), decode_image(photograph(), SIZE, crop, 1.0).pixels)


def test_an_answer_does_not_depend_on_its_neighbours(weights):
    classifier = ImagePredictor(weights, CARD)
    pixels = [classifier.pixels(photograph(seed=i % 5)) for i in range(BATCH + 3)]
    together = classifier.probabilities(pixels)
    assert together.shape == (BATCH + 3, 3)
    assert np.allclose(together.sum(1), 1, atol=1e-6)
    assert np.allclose(together[BATCH:], classifier.probabilities(pixels[BATCH:]), atol=1e-6)
    assert classifier.probabilities([]).shape == (0, 3)


def test_file_bytes_base64_and_array_give_one_answer(served):
    pixels = served.classifier.pixels(photograph())
    images = [photograph(), text(photograph()), pixels, pixels.tolist()]
    first, *others = served.predict(None, pd.DataFrame({"image": images}))
    for other in others:
        assert other["class"] == first["class"]
        assert other["probabilities"] == pytest.approx(first["probabilities"], abs=1e-6)
    assert first["class"] == max(first["probabilities"], key=first["probabilities"].get)
    assert first["robust_accuracy"]["value"] == CARD.robust_accuracy_worst.value
    assert "no medical device" in first["notice"]
    assert "synthetic" in first["notice"]
    json.dumps(first)


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_photograph_is_refused_with_the_reason(served, case):
    from mlflow.exceptions import MlflowException

    image, reason = HOSTILE[case]
    with pytest.raises(MlflowException) as refused:
        served.predict(None, pd.DataFrame({"image": pd.Series([text(photograph()), image], dtype=object)}))
    assert refused.value.get_http_status_code() == 400
    assert refused.value.message.startswith("image 1: ")
    assert reason in refused.value.message
    assert len(refused.value.message) < 500


@pytest.fixture
def finished(tmp_path, weights, monkeypatch):
    """The files of a whole run that read_card looks at."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/models", "metrics"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(weights, "data/models/adv.safetensors")
    scores = {f"{name}{end}": 0.5 for name in ("clean_accuracy", "robust_accuracy_worst") for end in ("", "_low", "_high")}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps({"adv": scores, "eps": 0.01, "n": 7}))
    (tmp_path / "metrics/data.json").write_text(json.dumps({"synthetic": False}))

    def entry(path, digest=""):
        return {"path": path, "md5": digest or md5(tmp_path / path)}

    stages = {
        "preprocess": {
            "outs": [entry("data/processed", "p"), entry("metrics/data.json")],
            "params": {"params.yaml": {"data": {"crop": "none", "usable_part": 1}}},
        },
        "attack_eval@adv": {
            "deps": [entry("data/processed", "p"), entry("data/models/adv.safetensors")],
            "outs": [entry("data/predictions/adv", "t")],
        },
        "evaluate": {
            "deps": [entry("data/predictions/adv", "t")],
            "outs": [entry("metrics/evaluate.json")],
            "params": {"params.yaml": {"attack": {"norm": "l2"}, "evaluate": {"confidence": 0.9}}},
        },
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return tmp_path


def test_the_card_of_a_finished_run(finished):
    card = read_card("adv")
    assert (card.crop, card.eps, card.images, card.confidence, card.synthetic) == ("none", 0.01, 7, 0.9, False)
    assert "at most 0.01 in Euclidean length" in card.notice()
    assert "synthetic" not in card.notice()
    with pytest.raises(InputError, match="whole `dvc repro`"):
        read_card("clean")


@pytest.mark.parametrize("file", ["data/models/adv.safetensors", "metrics/evaluate.json", "metrics/data.json"])
def test_a_model_never_gets_the_card_of_another(finished, file):
    with (finished / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(InputError, match=f"{file}: expected the one that dvc.lock records"):
        read_card("adv")


def test_predict_names_every_file_and_ends_badly_when_one_is_none(finished, capsys):
    (finished / "in/deep").mkdir(parents=True)
    (finished / "in/deep/1.JPG").write_bytes(photograph())
    (finished / "in/notes.txt").write_text("no picture")
    answers = predict.main("adv", [finished / "in"])
    assert [file.name for file in answers] == ["1.JPG"]
    assert "no medical device" in capsys.readouterr().out
    (finished / "in/2.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"2.png: expected a photograph, got: not an image"):
        predict.main("adv", [finished / "in"])
    assert "1.JPG" in capsys.readouterr().out, "the others are answered"
    with pytest.raises(InputError, match="expected files ending in"):
        predict.main("adv", [finished / "metrics"])


@pytest.mark.slow
def test_predict_sees_the_pixels_of_the_store_and_says_what_attack_eval_saw(clone, monkeypatch):
    monkeypatch.chdir(clone)
    store = load_dataset("data/processed")
    table = pd.read_csv("data/predictions/adv/predictions.csv").query("attack == 'none'").set_index("path")
    classifier = ImagePredictor(predict.weights_path("adv"), read_card("adv"))
    source = clone / "data/few"
    for path, stored in zip(store.manifest["path"], store.images, strict=True):
        assert np.array_equal(classifier.pixels((source / path).read_bytes()), stored), path
    rows = store.indices("test")
    found = classifier.probabilities(list(store.images[rows]))
    expected = table.loc[store.manifest["path"].iloc[rows], [f"p_{name}" for name in store.classes]].to_numpy()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def server(clone, tmp_path_factory):
    """The published model behind ``mlflow models serve``: its address."""
    folder = tmp_path_factory.mktemp("served") / "project"
    # Without the database: it knows the artifacts by the place of the first clone.
    shutil.copytree(clone, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    python = [sys.executable, "-m"]
    for model in ("clean", "adv", "adv"):
        output = run(*python, "stages.publish", model, cwd=folder)
    assert "@champion is version 2, adv" in output, "the same model again is no new version"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*python, "mlflow", "models", "serve", "-m", "models:/colposcopy-classifier@champion", "--env-manager", "local"]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    known = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    known["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "600"  # a busy machine
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
            cwd=tmp_path_factory.mktemp("elsewhere"),  # the code comes with the model
            env={**os.environ, **known, "PATH": path},
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


def ask(address, image=None, body=None, **headers):
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}) if body is None else body
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request("POST", "/invocations", body.encode(), headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.slow
def test_the_server_answers_refuses_and_lives_on(server):
    address, folder = server
    content = (folder / "data/few/Type_2/0.jpg").read_bytes()
    status, first = ask(address, text(content))
    assert status == 200, first
    (answer,) = json.loads(first)["predictions"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    expected = json.loads((folder / "metrics/evaluate.json").read_text())["adv"]
    assert answer["robust_accuracy"]["low"] == expected["robust_accuracy_worst_low"]

    for case, (image, reason) in HOSTILE.items():
        status, told = ask(address, image)
        assert 400 <= status < 500, (case, status, told[:500])
        assert reason in told, (case, told[:500])
        assert len(told) < 5000, case
    for body in ("", "{", "[]", '{"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}', "x" * 10**6):
        status, told = ask(address, body=body)
        assert 400 <= status < 500, (body[:50], status, told[:500])
    for kind in ("text/plain", "image/jpeg", "application/json; charset=latin-1"):
        status, told = ask(address, text(content), **{"Content-Type": kind})
        assert status == 415, (kind, status, told[:500])
    # These fail in MLflow's own code, before the model is asked.
    for fault in (ask(address, text(content), Accept="*/*"), ask(address, body="[" * 10**5), ask(address, body="9" * 5000)):
        assert fault == (500, "Internal Server Error"), "MLflow has mended it: say so in the README"
    assert ask(address, text(content)) == (200, first)
    run_folders = list((folder / "mlartifacts/models").glob("*/artifacts/artifacts/*"))
    assert {file.suffix for file in run_folders} == {".safetensors", ".json"}
    assert not [file for file in (folder / "mlartifacts").rglob("*.pkl")]
