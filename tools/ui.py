"""Show the runs in MLflow: start its server on 127.0.0.1 and open the table of all runs.

Run: python -m tools.ui [--port 5000]

Where MLFLOW_TRACKING_URI names a server, its page is opened.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress

from stages.core.errors import InputError
from stages.core.processes import run_cli
from stages.tracking.connection import (
    EXPERIMENT,
    VIEW_KEY,
    mlflow,
    mlflow_errors_in_one_line,
    open_mlflow,
)

HOST = "127.0.0.1"
SECONDS = 180  # that the server may take to start, next to a training, too


def main(port: int) -> None:
    """Serve until interrupted."""
    with mlflow_errors_in_one_line():
        open_mlflow()  # also makes the experiment and the view that the page shows
        experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    database = mlflow.get_tracking_uri()
    if database.startswith("http"):
        show(table_of_runs(database, experiment))
        return
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise InputError(
            f"port {port}: expected a free one, got: {error.strerror}: make ui PORT={port + 1}"
        ) from None
    # One process is enough, and MLflow's jobs would need others. No telemetry: see connection.py.
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", HOST]
    command += ["--port", str(port), "--backend-store-uri", database]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=environment)  # noqa: S603
    try:
        wait_for(server, f"http://{HOST}:{port}/health")
        show(table_of_runs(f"http://{HOST}:{port}", experiment))
        server.wait()
    except KeyboardInterrupt:  # the usual end; the terminal interrupts the server, too
        print()
    finally:
        server.terminate()
        server.wait()


def table_of_runs(server: str, experiment: str) -> str:
    """The address of the page with the headlines of all runs; MLflow's start page has none."""
    view = VIEW_KEY.rpartition(".")[2]
    page = f"#/experiments/{experiment}/runs"
    return f"{server}/{page}?workflowType=machine_learning&viewStateShareKey={view}"


def wait_for(server: subprocess.Popen, address: str) -> None:
    """Until it responds.

    Raises:
        InputError: when the server ends or is silent.
    """
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):  # noqa: S310
            return
        time.sleep(0.3)
    raise InputError(f"mlflow ui: expected a server at {address}, got none: see its lines above")


def show(address: str) -> None:
    """Print and open it; where there is no browser, the line is enough."""
    print(f"runs: {address}", flush=True)
    webbrowser.open(address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=5000)
    run_cli(main, **vars(parser.parse_args()))
