"""The runs in MLflow: what they contain, and what becomes of them when stages run again."""

import os
import signal

import pytest

from stages.core.files import md5
from stages.tracking import mlflow_runs
from stages.tracking.connection import COLUMNS
from tests.helpers.tracked_pipeline import (
    STAGES,
    log_epoch,
    log_stage,
    log_whole_pipeline,
    read_runs,
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
    return read_runs(logged_project)


def test_each_stage_is_finished_run_below_configuration(runs):
    configuration = runs.one(None)
    assert configuration.data.tags["dvc.experiment"] == "workspace"
    assert runs.statuses(None) == ["FINISHED"]
    for stage in STAGES:
        assert runs.one(stage).info.status == "FINISHED"
        assert runs.one(stage).data.tags["mlflow.parentRunId"] == configuration.info.run_id


def test_training_has_each_epoch_once_and_chosen_epoch(runs):
    training = runs.one("train_clean")
    assert runs.epochs(training) == [1, 2, 3]
    assert training.data.metrics["model/epoch"] == 2
    assert "epoch/val_robust_loss" not in training.data.metrics, "its cells are empty"


def test_runs_are_linked_by_models_and_dataset(runs, logged_project):
    (trained,) = runs.one("train_adv").outputs.model_outputs
    used = [model.model_id for model in runs.one("attack_eval@adv").inputs.model_inputs]
    (clean,) = runs.one("train_clean").outputs.model_outputs
    assert sorted(used) == sorted([clean.model_id, trained.model_id])
    digest = md5(logged_project / "data/processed/manifest.csv")
    for run in runs.runs:
        assert [data.dataset.digest for data in run.inputs.dataset_inputs] == [digest]


def test_metrics_of_attacks_belong_to_attacked_model(runs):
    (clean,) = runs.one("train_clean").outputs.model_outputs
    (adv,) = runs.one("train_adv").outputs.model_outputs
    for model, stage in ((clean, "attack_eval@clean"), (adv, "attack_eval@adv")):
        metrics = runs.client.get_logged_model(model.model_id).metrics
        owners = {m.run_id for m in metrics if m.key.startswith("robust_accuracy/")}
        assert owners == {runs.one(stage).info.run_id}


def test_configuration_has_main_metrics_params_note_and_report(runs):
    run = runs.one(None)
    assert run.data.metrics == {
        "clean/clean_accuracy": 0.75,
        "clean/robust_accuracy_worst": 0.5,
        "adv/clean_accuracy": 0.75,
        "adv/robust_accuracy_worst": 0.5,
    }
    note = run.data.tags["mlflow.note.content"]
    assert "| clean_accuracy | 0.750 [0.700, 0.800] | 0.750 [0.700, 0.800] |" in note
    assert run.data.params["attack.eps"] == "8/255"
    assert run.data.params["attack.eps_grid"] == "2/255, 4/255, 8/255"
    shown = {column.split("`")[1] for column in COLUMNS}
    assert shown <= run.data.params.keys() | run.data.metrics.keys()
    assert not [key for key in run.data.params if key.startswith("runtime.")]
    assert runs.artifacts(run) == ["report.html"]


def test_stage_has_params_environment_and_figures(runs):
    run = runs.one("attack_eval@adv")
    assert run.data.params.keys() == {"seed", "attack.norm", "attack.eps"}
    assert run.data.tags["version.numpy"]
    assert f"{os.cpu_count()} cores" in run.data.tags["device"]
    assert run.data.tags["git.uncommitted"] == "none"
    assert runs.artifacts(run, "examples") == ["examples/0.png"]
    assert runs.artifacts(run) == ["examples"], "tables of predictions name patients"
    assert runs.artifacts(runs.one("train_adv"), "plots") == ["plots/training_adv.csv"]


def test_another_execution_is_another_run_and_newest_results_are_shown(project):
    log_whole_pipeline()
    write_text("metrics/evaluate.json", '{"n": 3}')
    write_text("metrics/headlines.json", '{"clean": {"clean_accuracy": 0.8}}')
    log_stage("evaluate")
    runs = read_runs(project)
    assert sorted(run.data.metrics["n"] for run in runs.of("evaluate")) == [2, 3]
    assert runs.one(None).data.metrics["clean/clean_accuracy"] == 0.8
    assert len(runs.runs) == len(STAGES) + 2


def test_name_baseline_and_params_make_configuration(project, monkeypatch):
    def configurations():
        log_stage("preprocess")
        return len(read_runs(project).of(None))

    def change_params(old, new):
        write_text("params.yaml", (project / "params.yaml").read_text().replace(old, new))

    assert configurations() == 1
    change_params("workers: 0", "workers: 1")
    assert configurations() == 1, "where it runs is no part of it"
    change_params("bootstrap: 2000", "bootstrap: 100")
    assert configurations() == 2
    monkeypatch.setenv("DVC_EXP_NAME", "other")
    assert configurations() == 3
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "other")
    assert configurations() == 4


KILLED = """
time.sleep(1)
log_epoch('train_adv', 1)
log_epoch('train_adv', 2)
os.kill(os.getpid(), signal.SIGKILL)
"""
FAILED = """
log_epoch('train_adv', 2)
raise FloatingPointError
"""


def test_interrupted_training_is_shown_as_killed_and_resumed_as_new_run(project):
    process = start_script(project, KILLED)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    runs = read_runs(project)
    run = runs.one("train_adv")
    assert run.info.status == "RUNNING"
    first = runs.client.get_metric_history(run.info.run_id, "epoch/val_loss")[0]
    assert first.timestamp - run.info.start_time > 1000, "it started before its first epoch ended"
    start_script(project, FAILED).communicate(timeout=300)
    runs = read_runs(project)
    assert runs.statuses("train_adv") == runs.statuses(None) * 2 == ["KILLED", "KILLED"]
    restart()
    log_epoch("train_adv", 3)
    assert read_runs(project).statuses("train_adv") == ["KILLED", "KILLED", "RUNNING"]
    log_stage("train_adv")
    runs = read_runs(project)
    assert runs.statuses("train_adv") == ["FINISHED", "KILLED", "KILLED"]
    assert runs.statuses(None) == ["FINISHED"]
    (finished,) = [run for run in runs.of("train_adv") if run.info.status == "FINISHED"]
    assert sorted(runs.epochs(finished)) == [1, 2, 3]


def test_stage_is_logged_although_first_attempt_failed(project, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_runs, "START", object())
        log_epoch("train_adv", 1)
    assert "is not logged" in caplog.text
    log_stage("train_adv")
    runs = read_runs(project)
    assert runs.statuses("train_adv") == runs.statuses(None) == ["FINISHED"]
    assert runs.epochs(runs.one("train_adv")) == [1, 2, 3]
