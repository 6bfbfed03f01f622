"""Logging never fails a stage: it is off on demand, and whatever goes wrong is a warning. Real databases and processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import stages.tracking.__main__ as command
from stages.tracking import stage_logging
from tests.helpers.repository import ROOT
from tests.helpers.tracked_pipeline import (
    STAGES,
    epoch_rows,
    log_stage,
    log_whole_pipeline,
    read_local_runs,
    read_runs,
    restart,
    start_script,
    write_text,
)


def test_import_loads_no_heavy_package():
    code = "import sys, stages.tracking.stage_logging; print([m for m in ('mlflow', 'torch', 'pandas') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.slow
def test_run_of_failed_stage_is_marked_killed(project):
    body = "stage_logging.log_epoch('train_adv', {'epoch': 1, 'val_loss': 1})\nraise FloatingPointError"
    start_script(project, body).communicate(timeout=300)
    runs = read_local_runs(project)
    assert [runs.stages["train_adv"].info.status, runs.pipeline.info.status] == ["KILLED", "KILLED"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_unreachable_server_is_single_warning_within_a_minute(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    start = time.monotonic()
    log_whole_pipeline()
    assert time.monotonic() - start < 60
    warnings = [
        r.getMessage().partition(" (")[0]
        for r in caplog.records
        if r.name == stage_logging.__name__
    ]
    assert warnings == ["MLflow: preprocess is not logged"]


@pytest.mark.parametrize(
    ("stage", "text"),
    [("train", "expected one of the stages preprocess, .*, got 'train'"), ("evaluate", "JSON")],
)
def test_logging_error_is_warning(project, caplog, stage, text):
    write_text("metrics/evaluate.json", "{")
    log_stage(stage)
    assert caplog.text.count("is not logged") == 1
    assert re.search(text, caplog.text)


def test_nothing_is_logged_if_tracking_is_off(project):
    (project / "mlflow.db").unlink()
    write_text(
        "params.yaml", Path("params.yaml").read_text().replace("tracking: true", "tracking: false")
    )
    log_whole_pipeline()
    assert not (project / "mlflow.db").exists()


@pytest.mark.slow
def test_results_of_interrupted_server_are_logged_later(project, monkeypatch, caplog):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    arguments = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--workers",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    arguments += [
        "--backend-store-uri",
        f"sqlite:///{project}/served.db",
        "--artifacts-destination",
        str(project / "served"),
    ]
    env = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

    def serve():
        process = subprocess.Popen(
            arguments,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)  # noqa: S310
                return process
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(f"expected a server at {uri}, got no response in 5 minutes")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    server = serve()
    try:
        log_stage("preprocess")
        stage_logging.log_epoch("train_clean", epoch_rows("clean")[0])
        assert not caplog.records
        os.killpg(server.pid, signal.SIGKILL)
        start = time.monotonic()
        for row in epoch_rows("clean")[1:]:
            stage_logging.log_epoch("train_clean", row)
        for stage in STAGES[1:]:
            log_stage(stage)
        assert time.monotonic() - start < 90
        assert caplog.text.count("is not logged") == 1
        server = serve()
        restart()
        monkeypatch.setattr(command, "_outdated_stages", dict)
        assert command.main() == 0
        runs = read_runs(uri)
        assert sorted(runs.stages) == sorted(STAGES)
        assert {run.info.status for run in [runs.pipeline, *runs.stages.values()]} == {"FINISHED"}
        assert runs.steps("train_clean", "epoch/val_loss") == [1, 2, 3]
        assert runs.files[runs.pipeline.info.run_id] == ["report.html"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
