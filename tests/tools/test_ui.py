"""The page of all runs."""

import socket

import pytest

from stages.core.errors import InputError
from tools import ui


@pytest.fixture
def shown(monkeypatch):
    """The addresses that were opened; MLflow's experiment has the number 7."""
    addresses = []
    monkeypatch.setattr(ui.webbrowser, "open", addresses.append)
    monkeypatch.setattr(ui, "open_mlflow", lambda: None)
    monkeypatch.setattr(
        ui.mlflow,
        "get_experiment_by_name",
        lambda name: type("Experiment", (), {"experiment_id": "7"}),
    )
    return addresses


def test_taken_port_is_one_line_with_another_port(shown, monkeypatch):
    monkeypatch.setattr(ui.mlflow, "get_tracking_uri", lambda: "sqlite:///mlflow.db")
    with socket.create_server((ui.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: .*make ui PORT={port + 1}"):
            ui.main(port)
    assert not shown


def test_page_of_a_server_that_runs_elsewhere_is_opened(shown, monkeypatch):
    monkeypatch.setattr(ui.mlflow, "get_tracking_uri", lambda: "http://host:5000")
    ui.main(5000)
    (address,) = shown
    assert address.startswith("http://host:5000/#/experiments/7/runs?")
