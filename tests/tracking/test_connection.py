"""Where the database and the artifacts lie, and who creates them."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stages.tracking.connection import EXPERIMENT, VIEW_KEY, tracking_uri
from tests.helpers.tracked_pipeline import RACE, log_stage, read_runs, write_pipeline_files


def test_simultaneous_stages_create_single_database_and_configuration(new_database):
    folder, stderr = new_database
    assert "is not logged" not in stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    names = sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
    assert names == [f"eps=8/255 seed=0 ({RACE})", "preprocess", "train_adv"]
    assert VIEW_KEY in experiment.tags
    assert experiment.artifact_location == (folder / "mlartifacts").as_uri()


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
    log_stage("evaluate")
    shutil.rmtree(copy)
    runs = read_runs(project)
    assert runs.one(None).info.run_name == "eps=8/255 seed=0 (tiny-mole)"
    assert runs.artifacts(runs.one("evaluate")) == ["metrics", "plots", "report.html"]
