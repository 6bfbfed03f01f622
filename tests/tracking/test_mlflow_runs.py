"""The runs of a pipeline in MLflow: their contents, and what becomes of them when stages run again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from stages.core.files import md5
from stages.tracking import stage_logging
from stages.tracking.connection import COLUMNS
from tests.helpers.tracked_pipeline import (
    STAGES,
    epoch_rows,
    log_stage,
    log_whole_pipeline,
    read_local_runs,
    restart,
    start_script,
    tracked_project,
    write_text,
)


@pytest.fixture(scope="module")
def logged_project(new_database, tmp_path_factory):
    """The folder of a project whose pipeline was logged once."""
    folder = tmp_path_factory.mktemp("logged")
    with tracked_project(folder, new_database[0] / "mlflow.db"):
        log_whole_pipeline()
    return folder


@pytest.fixture(scope="module")
def runs(logged_project):
    return read_local_runs(logged_project)


def test_each_stage_is_finished_run_below_pipeline(runs):
    assert sorted(runs.stages) == sorted(STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.stages.values()} == {
        runs.pipeline.info.run_id
    }
    assert {run.info.status for run in [runs.pipeline, *runs.stages.values()]} == {"FINISHED"}
    assert runs.pipeline.info.run_name == "workspace"


def test_training_run_has_epochs_and_selected_epoch(runs):
    metrics = runs.stages["train_clean"].data.metrics
    assert runs.steps("train_clean", "epoch/val_loss") == [1, 2, 3]
    assert metrics["model/epoch"] == 2
    assert "epoch/val_robust_loss" not in metrics  # its cells are empty


def test_runs_are_linked_by_models_and_dataset(runs, logged_project):
    (trained,), (attacked,) = (
        runs.stages["train_clean"].outputs.model_outputs,
        runs.stages["attack_eval@clean"].inputs.model_inputs,
    )
    assert trained.model_id == attacked.model_id
    digest = md5(logged_project / "data/processed/manifest.csv")
    for run in [runs.pipeline, *runs.stages.values()]:
        if run.info.run_name != "evaluate":  # which reads tables of predictions only
            assert [d.dataset.digest for d in run.inputs.dataset_inputs] == [digest]


def test_stage_runs_have_metrics_of_their_files(runs):
    assert runs.stages["preprocess"].data.metrics == {"data/images": 2, "data/train.CIN2_": 1}
    assert runs.stages["attack_eval@clean"].data.metrics == {
        "clean_accuracy": 0.5,
        "robust_accuracy/pgd.eps_8_255": 0,
        "robust_accuracy/pgd.eps_0.25_255": 1,
    }


def test_pipeline_run_has_main_metrics_and_note(runs):
    run = runs.pipeline
    assert run.data.metrics.keys() == {"data/images", "n"} | {
        f"{model}/{name}"
        for model in ("clean", "adv")
        for name in ("clean_accuracy", "robust_accuracy_worst")
    }
    steps = {
        step for metric in run.data.metrics for step, _ in runs.history[run.info.run_id, metric]
    }
    assert steps == {0}, "MLflow draws a bar for a metric at step 0 only"
    assert "| clean_accuracy | 0.750 [0.700, 0.800] |" in run.data.tags["mlflow.note.content"]
    assert "| robust_accuracy_worst | 0.500 | 0.500 |" in run.data.tags["mlflow.note.content"]


def test_pipeline_run_has_params_except_runtime_and_columns_of_view(runs):
    params = runs.pipeline.data.params
    assert params["attack.norm"] == "linf"
    for run in [runs.pipeline, *runs.stages.values()]:
        assert not [key for key in run.data.params if key.startswith("runtime.")]
    assert all(
        column.split("`")[1] in {**params, **runs.pipeline.data.metrics} for column in COLUMNS
    )


def test_stage_run_has_environment_tags(runs):
    tags = runs.stages["evaluate"].data.tags
    assert tags["version.numpy"]
    assert f"{os.cpu_count()} cores" in tags["device"]
    assert tags["git.uncommitted"] == "none"


def test_runs_have_artifacts(runs):
    assert runs.files_of("attack_eval@adv") == ["examples/0.png"]
    assert runs.files_of("train_adv") == ["plots/training_adv.csv"]
    assert runs.files_of("evaluate") == [
        "metrics/evaluate.json",
        "plots/robustness.csv",
        "report.html",
    ]
    assert runs.files[runs.pipeline.info.run_id] == ["report.html"]


def test_relogging_is_idempotent(project):
    log_whole_pipeline()
    before = read_local_runs(project).snapshot()
    restart()
    log_whole_pipeline()
    assert read_local_runs(project).snapshot() == before


def test_new_results_supersede_runs_even_if_clock_went_back(project, monkeypatch):
    log_whole_pipeline()
    restart()
    write_text("metrics/evaluate.json", json.dumps({"n": 1}))
    lines = Path("plots/training_adv.csv").read_text(encoding="utf-8").splitlines()
    write_text("plots/training_adv.csv", "\n".join([*lines[:-1], "3,9,0.5,,0"]))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    log_stage("train_adv")
    log_stage("evaluate")
    runs = read_local_runs(project)
    assert sorted(runs.stages) == sorted(
        [*STAGES, "train_adv (superseded)", "evaluate (superseded)"]
    )
    assert runs.pipeline.data.metrics["n"] == 1
    assert runs.stages["evaluate"].data.metrics == {"n": 1}
    last = {
        name: runs.history[run.info.run_id, "epoch/val_loss"][-1]
        for name, run in runs.stages.items()
        if "train" in name
    }
    assert last["train_adv"] == (3, 9)
    assert last["train_adv (superseded)"] != (3, 9)


@pytest.fixture
def interrupted(project):
    """The run of a training that was killed after two epochs."""
    rows = epoch_rows("adv", 2)
    body = f"for row in {rows}: stage_logging.log_epoch('train_adv', row)\nos.kill(os.getpid(), signal.SIGKILL)"
    process = start_script(project, body)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    run = read_local_runs(project).stages["train_adv"]
    assert run.info.status == "RUNNING"
    return run.info.run_id


def test_resumed_training_is_logged_in_its_run_unless_metrics_differ(project, interrupted):
    for row in epoch_rows("adv")[1:]:  # resumed from the checkpoint before the last logged epoch
        stage_logging.log_epoch("train_adv", row)
    log_stage("train_adv")
    runs = read_local_runs(project)
    assert len(runs.pipelines) == 1
    assert runs.stages["train_adv"].info.run_id == interrupted
    assert runs.stages["train_adv"].info.status == "FINISHED"
    assert runs.steps("train_adv", "epoch/val_loss") == [1, 2, 3]

    restart()
    stage_logging.log_epoch("train_adv", {"epoch": 1, "val_loss": 7.0})
    stages = read_local_runs(project).stages
    assert stages["train_adv"].info.run_id != interrupted
    assert stages["train_adv (superseded)"].info.status == "FINISHED"
