"""A pipeline whose stages have left small files, and what MLflow has of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.core.params import PerturbationBudget, Seeded, StageParams
from stages.core.params_file import load_stage_params
from stages.tracking import stage_logging
from stages.tracking.connection import EXPERIMENT
from tests.helpers.repository import ROOT

STAGES = (
    "preprocess",
    "train_clean",
    "attack_eval@clean",
    "train_adv",
    "attack_eval@adv",
    "evaluate",
)
PIPELINE = """
stages:
  preprocess: {deps: ["${data.source}"], params: [seed, data], outs: [data/processed],
    metrics: [metrics/data.json: {cache: false}], plots: [plots/crops.png: {cache: false}]}
  train_clean: {deps: [data/processed], params: [seed, train_clean], outs: [data/models/clean.safetensors],
    plots: [plots/training_clean.csv: {cache: false}]}
  attack_eval: {matrix: {model: [clean, adv]}, deps: [data/processed, "data/models/${item.model}.safetensors"],
    params: [attack], outs: ["data/predictions/${item.model}"]}
  train_adv: {deps: [data/processed], params: [seed, train_adv], outs: [data/models/adv.safetensors],
    plots: [plots/training_adv.csv: {cache: false}]}
  evaluate: {deps: [data/predictions/clean, data/predictions/adv], params: [evaluate.bootstrap], outs: [data/report.html],
    metrics: [metrics/evaluate.json: {cache: false}], plots: [plots/robustness.csv: {cache: false}]}
"""
RACE = "race"  # the experiment that the fixture new_database logs
ENVIRONMENT = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI")


class Params(StageParams):
    """What the stages of these tests read of params.yaml."""

    attack: PerturbationBudget


def write_text(path: Path | str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def epoch_rows(model: str, count: int = 3) -> list[dict[str, float]]:
    """The rows of fit(), with all their digits."""
    base = {"clean": 1, "adv": 2}[model]
    return [
        {"epoch": e, "val_loss": base / (e + 1 / 3), "val_clean_accuracy": 1 - 1 / (e + 2 / 3)}
        for e in range(1, count + 1)
    ]


def write_pipeline_files(folder: Path, name: str) -> None:
    """The files that the six stages leave; another name gives other bytes."""
    write_text(folder / "dvc.yaml", PIPELINE)
    shutil.copy(ROOT / "params.yaml", folder)
    write_text(folder / "data/processed/manifest.csv", f"path,label\n{name}.jpg,x\n2.jpg,y\n")
    write_text(
        folder / "metrics/data.json",
        json.dumps({"images": 2, "train": {"CIN2+": 1}, "source": name}),
    )
    write_text(folder / "plots/crops.png", f"{name} png")
    for model in ("clean", "adv"):
        rows = epoch_rows(model)
        lines = [
            f"{r['epoch']},{r['val_loss']:.6g},{r['val_clean_accuracy']:.6g},,{int(r['epoch'] == 2)}"
            for r in rows
        ]
        write_text(
            folder / f"plots/training_{model}.csv",
            "\n".join(["epoch,val_loss,val_clean_accuracy,val_robust_loss,chosen", *lines, ""]),
        )
        write_text(folder / f"data/models/{model}.safetensors", f"{name} weights of {model}")
        rows = [
            ("none", 0, "x", "x"),
            ("none", 0, "y", "x"),
            ("pgd", 8 / 255, "x", "y"),
            ("pgd", 0.25 / 255, "x", "x"),
        ]
        table = "\n".join(
            f"{a},{eps:.6g},{label},{prediction}" for a, eps, label, prediction in rows
        )
        write_text(
            folder / f"data/predictions/{model}/predictions.csv",
            f"attack,eps,label,prediction\n{table}\n",
        )
        write_text(folder / f"data/predictions/{model}/examples/0.png", f"{name} {model} png")
    metrics = {
        model: {
            "clean_accuracy": 0.75,
            "clean_accuracy_low": 0.7,
            "clean_accuracy_high": 0.8,
            "robust_accuracy_worst": 0.5,
        }
        for model in ("clean", "adv")
    }
    write_text(folder / "metrics/evaluate.json", json.dumps({**metrics, "n": 2}))
    write_text(folder / "plots/robustness.csv", "model,eps,accuracy\nclean,0,1\n")
    write_text(folder / "data/report.html", "<p>report</p>")


def restart() -> None:
    """Forget what this process knows, like a new process."""
    stage_logging.current_session.cache_clear()
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
    imports = (
        "import os, signal",
        "from stages.core.params import Seeded",
        "from stages.core.params_file import load_stage_params",
        "from stages.tracking import stage_logging",
    )
    code = "\n".join([*imports, body])
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    )


def log_stage(stage: str) -> None:
    """Log a stage that has read the seed only."""
    stage_logging.log_stage(stage, load_stage_params(Seeded))


def log_whole_pipeline() -> None:
    """Log all stages in order, the trainings after every epoch."""
    for stage in STAGES:
        if stage.startswith("train_"):
            for row in epoch_rows(stage.removeprefix("train_")):
                stage_logging.log_epoch(stage, row)
        stage_logging.log_stage(stage, load_stage_params(Params))


@dataclass(frozen=True)
class LoggedRuns:
    """What MLflow has, without the runs of RACE.

    Attributes:
        pipelines: runs of whole pipelines.
        stages: runs of stages, by name.
        history: (run, metric) -> (step, value) of each.
        files: run -> paths of its artifacts.
    """

    pipelines: list[Any]
    stages: dict[str, Any]
    history: dict[tuple[str, str], list[tuple[int, float]]]
    files: dict[str, list[str]]

    @property
    def pipeline(self) -> Any:
        """The only pipeline's run."""
        (run,) = self.pipelines
        return run

    def steps(self, stage: str, metric: str) -> list[int]:
        """Steps of a metric in a stage's run."""
        return [step for step, _ in self.history[self.stages[stage].info.run_id, metric]]

    def files_of(self, stage: str) -> list[str]:
        """Artifacts of a stage's run."""
        return self.files[self.stages[stage].info.run_id]

    def snapshot(self) -> Any:
        """All that a test may compare for equality."""
        runs = [
            (
                run.info.to_proto().SerializeToString(),
                sorted(run.data.tags.items()),
                run.inputs.to_dictionary(),
            )
            for run in (*self.pipelines, *self.stages.values())
        ]
        return runs, self.history, self.files


def read_runs(uri: str) -> LoggedRuns:
    """What a tracking server or database has."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = [
        client.get_run(r.info.run_id)
        for e in experiments
        for r in client.search_runs([e.experiment_id])
    ]
    race = {run.info.run_id for run in runs if run.info.run_name == RACE}
    runs = [
        run for run in runs if not race & {run.info.run_id, run.data.tags.get("mlflow.parentRunId")}
    ]
    history = {
        (run.info.run_id, metric): [
            (m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)
        ]
        for run in runs
        for metric in run.data.metrics
    }
    return LoggedRuns(
        [run for run in runs if "stage" not in run.data.tags],
        {run.info.run_name: run for run in runs if "stage" in run.data.tags},
        history,
        {run.info.run_id: sorted(_artifacts(client, run.info.run_id)) for run in runs},
    )


def _artifacts(client: Any, run: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run, folder):
        if entry.is_dir:
            yield from _artifacts(client, run, entry.path)
        else:
            yield entry.path


def read_local_runs(folder: Path) -> LoggedRuns:
    """What the database in a folder has."""
    return read_runs(f"sqlite:///{folder}/mlflow.db")
