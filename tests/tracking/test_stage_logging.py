"""Logging never fails a stage: it is off on demand, and whatever goes wrong is a warning."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import stages.tracking.__main__ as command
from stages.tracking import stage_logging
from tests.helpers.repository import ROOT
from tests.helpers.tracked_pipeline import (
    STAGES,
    LoggedRuns,
    log_epoch,
    log_stage,
    log_whole_pipeline,
    read_runs,
    restart,
    write_text,
)


def test_import_loads_no_heavy_package():
    code = "import sys, stages.tracking.stage_logging\n"
    code += "assert not {'mlflow', 'torch', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_mlflow_sends_no_telemetry():
    code = "import stages.tracking.mlflow_runs, mlflow.telemetry.client as telemetry\n"
    code += "assert telemetry.get_telemetry_client() is None"
    env = {"PATH": os.environ["PATH"]}  # no variable that says that this is a test
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_unreachable_server_is_single_warning_within_a_minute(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    start = time.monotonic()
    log_whole_pipeline()
    assert time.monotonic() - start < 60
    messages = [r.getMessage() for r in caplog.records if r.name == stage_logging.__name__]
    assert [text.partition(" (")[0] for text in messages] == ["MLflow: preprocess is not logged"]


@pytest.mark.parametrize(("stage", "error"), [("train", "KeyError: 'train'"), ("evaluate", "JSON")])
def test_logging_error_is_warning_and_leaves_no_finished_run(project, caplog, stage, error):
    write_text("metrics/evaluate.json", "{")
    log_stage(stage)
    assert re.search(f"{stage} is not logged .*{error}", caplog.text)
    restart()
    assert "FINISHED" not in read_runs(project).statuses(stage)


def test_nothing_is_logged_if_tracking_is_off(project):
    (project / "mlflow.db").unlink()
    params = (project / "params.yaml").read_text()
    write_text("params.yaml", params.replace("tracking: true", "tracking: false"))
    log_whole_pipeline()
    assert not (project / "mlflow.db").exists()


def start_server(port: int, folder) -> subprocess.Popen:
    """MLflow's server, when it responds."""
    command = f"-m mlflow server --workers 1 --host 127.0.0.1 --port {port}".split()
    store = ["--backend-store-uri", f"sqlite:///{folder}/served.db"]
    store += ["--artifacts-destination", str(folder / "served")]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, *store], env=env, stderr=log, start_new_session=True
        )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return process
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("expected a server, got no response in 5 minutes")


@pytest.mark.slow
def test_results_of_interrupted_server_are_logged_later(project, monkeypatch, caplog):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = start_server(port, project)
    try:
        log_stage("preprocess")
        log_epoch("train_clean", 1)
        assert not caplog.records
        os.killpg(server.pid, signal.SIGKILL)
        for epoch in (2, 3):
            log_epoch("train_clean", epoch)
        for stage in STAGES[1:]:
            log_stage(stage)
        assert caplog.text.count("is not logged") == 1
        server = start_server(port, project)
        restart()
        monkeypatch.setattr(command, "_outdated_stages", dict)
        assert command.main() == 0
        runs = LoggedRuns(f"http://127.0.0.1:{port}")
        for stage in STAGES:
            assert runs.statuses(stage)[0] == "FINISHED"
        assert runs.statuses("train_clean") == ["FINISHED", "KILLED"]
        assert runs.statuses(None) == ["FINISHED"]
        assert runs.artifacts(runs.one(None)) == ["report.html"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
