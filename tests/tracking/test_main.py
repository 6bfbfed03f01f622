"""The command ``python -m stages.tracking``, which logs what is not in MLflow yet."""

import contextlib
import sqlite3

import pytest

import stages.tracking.__main__ as command
from stages.core.errors import InputError
from stages.tracking import stage_outputs
from stages.tracking.connection import EXPERIMENT
from tests.helpers.tracked_pipeline import (
    STAGES,
    log_stage,
    log_whole_pipeline,
    read_runs,
    restart,
)


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs the command in a new process, as it were; its exit status and lines."""

    def run(outdated=()):
        restart()
        monkeypatch.setattr(command, "_outdated_stages", lambda: outdated)
        return command.main(), capsys.readouterr().out.splitlines()

    return run


def test_command_logs_missing_stages_except_outdated(project, run_command):
    log_stage("preprocess")
    log_stage("train_clean")
    runs = read_runs(project)
    runs.client.set_terminated(runs.one("train_clean").info.run_id, "KILLED")
    assert run_command(["evaluate"]) == (
        1,
        [
            "preprocess: logged already",
            "train_clean: logged",
            "attack_eval@clean: logged",
            "attack_eval@adv: logged",
            "train_adv: logged",
            "evaluate: skipped: outputs are out of date (run `dvc repro`)",
        ],
    )
    runs = read_runs(project)
    assert runs.statuses("train_clean") == ["FINISHED", "KILLED"]
    training = runs.one("train_adv")
    assert training.data.params.keys() >= {"seed", "train_adv.lr"}
    assert "attack.norm" not in training.data.params
    assert "device" not in training.data.tags, "unknown where it ran"
    assert runs.epochs(training) == [1, 2, 3]
    assert run_command(["evaluate"])[1][1] == "train_clean: logged already"
    assert len(read_runs(project).runs) == len(runs.runs)


def test_command_logs_pipeline_taken_from_dvc_cache(project, monkeypatch, run_command):
    log_whole_pipeline()
    known = [f"{stage}: logged already" for stage in stage_outputs.stage_names()]
    assert run_command() == (0, known)
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-mole")
    assert run_command() == (0, [*known, "the pipeline: logged"])
    assert run_command() == (0, known)
    runs = read_runs(project)
    assert len(runs.runs) == len(STAGES) + 2, "no stage was executed again"
    by_experiment = {run.data.tags["dvc.experiment"]: run for run in runs.of(None)}
    cached, executed = by_experiment["tiny-mole"], by_experiment["workspace"]
    assert cached.info.status == "FINISHED"
    assert cached.data.metrics == executed.data.metrics
    assert cached.data.params == executed.data.params
    assert cached.inputs.to_dictionary() == executed.inputs.to_dictionary()
    assert runs.artifacts(cached) == ["report.html"]


def delete_experiment(folder):
    client = read_runs(folder).client
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def damage(folder):
    (folder / "mlflow.db").write_bytes(b"no database" * 100)


def make_outdated(folder):
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("update alembic_version set version_num = 'bd07f7e963c5'")


@pytest.mark.parametrize(
    ("spoil", "uri", "reason"),
    [
        (delete_experiment, "", "restore"),
        (damage, "", "not a database"),
        (make_outdated, "", "mlflow db upgrade"),
        (None, "http://127.0.0.1:9", "Connection refused"),
        (None, "./mlruns", "migrate"),
    ],
)
def test_unusable_mlflow_is_one_line_with_its_cause(
    project, run_command, monkeypatch, spoil, uri, reason
):
    if spoil:
        spoil(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=f"MLflow: .*{reason}") as error:
        run_command()
    assert "\n" not in str(error.value)
