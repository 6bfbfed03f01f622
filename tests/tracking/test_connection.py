"""Where the database lies, and who creates it."""

import shutil
from pathlib import Path

import pytest

from stages.tracking.connection import EXPERIMENT, VIEW_KEY, tracking_uri
from tests.helpers.tracked_pipeline import (
    RACE,
    log_whole_pipeline,
    read_local_runs,
    write_pipeline_files,
)


def test_simultaneous_processes_create_single_database_and_parent_run(new_database):
    from mlflow import MlflowClient

    folder, errors = new_database
    assert not [error for error in errors if "is not logged" in error]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    names = sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
    assert names == ["preprocess", RACE, "train_clean"]
    assert VIEW_KEY in experiment.tags


def test_artifacts_lie_in_main_repository(new_database):
    """Also those of MLflow's own experiment, although the database was created in a temporary copy."""
    from mlflow import MlflowClient

    folder, _ = new_database
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert (
        client.get_experiment_by_name(EXPERIMENT).artifact_location
        == (folder / "mlartifacts").as_uri()
    )
    assert client.get_experiment("0").artifact_location == (folder / "mlartifacts/0").as_uri()


@pytest.mark.parametrize(
    ("variable", "uri"),
    [
        ("", "sqlite:////main/mlflow.db"),
        ("sqlite:///x.db", "sqlite:////main/x.db"),
        ("sqlite:////abs/x.db", "sqlite:////abs/x.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_relative_database_path_starts_at_main_repository(monkeypatch, variable, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert tracking_uri(Path("/main")) == uri


def test_experiment_in_temporary_copy_is_logged_in_main_repository(
    project, monkeypatch, tmp_path_factory
):
    copy = tmp_path_factory.mktemp("copy")
    write_pipeline_files(copy, "copy")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-mole")
    log_whole_pipeline()
    shutil.rmtree(copy)
    runs = read_local_runs(project)
    assert runs.pipeline.info.run_name == "tiny-mole"
    assert runs.files_of("evaluate") == [
        "metrics/evaluate.json",
        "plots/robustness.csv",
        "report.html",
    ]
