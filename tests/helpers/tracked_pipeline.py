"""A pipeline whose stages have left small files, and what MLflow has of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages.core.params import PerturbationBudget, Seeded, StageParams
from stages.core.params_file import load_stage_params
from stages.tracking import connection, stage_logging
from tests.helpers.params import write_params
from tests.helpers.repository import ROOT

STAGES = (
    "preprocess",
    "train_clean",
    "attack_eval@clean",
    "attack_eval@adv",
    "train_adv",
    "evaluate",
)
PIPELINE = """
stages:
  preprocess:
    deps: ["${data.source}"]
    params: [seed, data]
    outs: [data/processed]
    metrics: [metrics/data.json: {cache: false}]
    plots: [plots/crops.png: {cache: false}]
  train_clean:
    deps: [data/processed]
    params: [seed, train_clean]
    outs: [data/models/clean.safetensors]
    plots: [plots/training_clean.csv: {cache: false}]
  attack_eval:
    matrix: {model: [clean, adv]}
    deps: [data/processed, data/models/clean.safetensors, "data/models/${item.model}.safetensors"]
    params: [attack]
    outs: ["data/predictions/${item.model}"]
  train_adv:
    deps: [data/processed, data/models/clean.safetensors]
    params: [seed, train_adv]
    outs: [data/models/adv.safetensors]
    plots: [plots/training_adv.csv: {cache: false}]
  evaluate:
    deps: [data/processed, data/predictions/clean, data/predictions/adv]
    params: [evaluate.bootstrap]
    outs: [data/report.html]
    metrics: [metrics/headlines.json: {cache: false}, metrics/evaluate.json: {cache: false}]
    plots: [plots/robustness.csv: {cache: false}]
"""
PREDICTIONS = """attack,norm,eps,label,prediction
none,linf,0,x,x
none,linf,0,y,x
pgd,linf,0.0313725,x,y
pgd,linf,0.000980392,x,x
pgd,l2,0.5,x,x
"""
HEADLINES = {"clean_accuracy": 0.75, "robust_accuracy_worst": 0.5}
ACCURACIES = {**HEADLINES, "clean_accuracy_low": 0.7, "clean_accuracy_high": 0.8}
RACE = "race"  # the experiment that the fixture new_database logs
ENVIRONMENT = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI")


class Params(StageParams):
    """What the stages of these tests read of params.yaml."""

    attack: PerturbationBudget


def write_text(path: Path | str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def epoch_row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "val_loss": 1 / (epoch + 1 / 3)}


def write_pipeline_files(folder: Path, name: str) -> None:
    """The files that the six stages leave; another name gives other bytes."""
    write_params(folder / "params.yaml")
    rows = [f"{row['epoch']},{row['val_loss']:.6g},,0" for row in map(epoch_row, (1, 2, 3))]
    rows[1] = rows[1][:-1] + "1"
    for path, text in {
        "dvc.yaml": PIPELINE,
        "data/processed/manifest.csv": f"path,label\n{name}.jpg,x\n2.jpg,y\n",
        "metrics/data.json": json.dumps({"images": 2, "train": {"CIN2+": 1}, "source": name}),
        "metrics/evaluate.json": json.dumps({"clean": ACCURACIES, "adv": ACCURACIES, "n": 2}),
        "metrics/headlines.json": json.dumps({"clean": HEADLINES, "adv": HEADLINES}),
        "plots/crops.png": name,
        "plots/robustness.csv": "model,eps,accuracy\nclean,0,1\n",
        "data/report.html": f"<p>{name}</p>",
    }.items():
        write_text(folder / path, text)
    for model in ("clean", "adv"):
        curve = "\n".join(["epoch,val_loss,val_robust_loss,chosen", *rows, ""])
        write_text(folder / f"plots/training_{model}.csv", curve)
        write_text(folder / f"data/models/{model}.safetensors", f"{name} {model}")
        write_text(folder / f"data/predictions/{model}/predictions.csv", PREDICTIONS)
        write_text(folder / f"data/predictions/{model}/examples/0.png", f"{name} {model}")


def restart() -> None:
    """Forget what this process knows, like a new process."""
    connection.mark_runs_killed()
    connection.open_mlflow.cache_clear()
    stage_logging._failed = False


@contextmanager
def tracked_project(folder: Path, database: Path) -> Iterator[None]:
    """Inside, the current folder is a project whose pipeline has run, with a copy of a database."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ENVIRONMENT:
            patch.delenv(name, raising=False)
        patch.setenv("DVC_ROOT", str(folder))
        patch.chdir(folder)
        write_pipeline_files(folder, folder.name)
        shutil.copy(database, folder)
        restart()
        yield
        restart()


def start_script(folder: Path, body: str, **env: str) -> subprocess.Popen:
    """A process of its own, like those that DVC starts."""
    imports = "import os, signal, time\nfrom tests.helpers.tracked_pipeline import *\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-c", imports + body]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def log_epoch(stage: str, epoch: int) -> None:
    stage_logging.log_epoch(stage, epoch_row(epoch))


def log_stage(stage: str, params: type[StageParams] = Seeded) -> None:
    stage_logging.log_stage(stage, load_stage_params(params))


def log_whole_pipeline() -> None:
    """Log all stages, the trainings after every epoch."""
    for stage in STAGES:
        if stage.startswith("train_"):
            for epoch in (1, 2, 3):
                log_epoch(stage, epoch)
        log_stage(stage, Params)


class LoggedRuns:
    """What a tracking server or database has, without the runs of RACE."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(connection.EXPERIMENT)
        runs = self.client.search_runs([experiment.experiment_id])
        race = {run.info.run_id for run in runs if run.data.tags.get("dvc.experiment") == RACE}
        self.runs = [
            self.client.get_run(run.info.run_id)  # with its models, which a search leaves out
            for run in runs
            if not race & {run.info.run_id, run.data.tags.get("mlflow.parentRunId")}
        ]

    def of(self, stage: str | None) -> list[Any]:
        """The executions of a stage; None: the configurations."""
        return [run for run in self.runs if run.data.tags.get("stage") == stage]

    def one(self, stage: str | None) -> Any:
        """The only one of them."""
        (run,) = self.of(stage)
        return run

    def statuses(self, stage: str | None) -> list[str]:
        return sorted(run.info.status for run in self.of(stage))

    def epochs(self, run: Any, metric: str = "epoch/val_loss") -> list[int]:
        return [m.step for m in self.client.get_metric_history(run.info.run_id, metric)]

    def artifacts(self, run: Any, folder: str = "") -> list[str]:
        return [file.path for file in self.client.list_artifacts(run.info.run_id, folder)]


def read_runs(folder: Path) -> LoggedRuns:
    """What the database in a folder has."""
    return LoggedRuns(f"sqlite:///{folder}/mlflow.db")
