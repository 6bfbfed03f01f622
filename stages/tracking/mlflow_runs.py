"""The runs of one pipeline in MLflow: found or created, resumed after an interruption, superseded by contradicting results."""

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.core.files import md5
from stages.core.params_file import flatten, load_params
from stages.tracking import stage_outputs
from stages.tracking.stage_outputs import Metrics

DATA_METRICS = (
    "data/images",
    "data/groups.total",
    "data/rejected.total",
)  # of metrics/data.json, what a pipeline's run shows

_started = time.time()


@dataclass
class StageRun:
    """The MLflow run of a stage."""

    id: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)  # what MLflow has


@dataclass
class MlflowSession:
    """A connection to MLflow."""

    client: Any
    experiment: str
    lock: FileLock
    code: dict[str, str]  # tags that say which
    runs: dict[str, StageRun] = field(default_factory=dict)  # by stage

    @functools.cached_property
    def parent(self) -> str:
        """The run of the configuration in params.yaml, found or created."""
        name, baseline = (
            os.environ.get("DVC_EXP_NAME") or "workspace",
            self.code["mlflow.source.git.commit"],
        )
        baseline = os.environ.get("DVC_EXP_BASELINE_REV") or baseline
        params = _params(flatten(load_params()))
        key = _digest([name, baseline, [(p.key, p.value) for p in params]])
        with self.lock:
            tags = {
                "pipeline": key,
                "params": _params_digest(),
                "dvc.baseline": baseline,
                **self.code,
                **_source("dvc.yaml"),
            }
            found = self.find({"pipeline": key})
            run = (found or [self.client.create_run(self.experiment, _ms(_started), tags, name)])[
                0
            ].info.run_id
        self.log(run, params=params)
        return run

    def find(self, tags: Mapping[str, str]) -> list[Any]:
        """Runs with these tags that no later result has superseded."""
        found = self.client.search_runs(
            [self.experiment], " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
        )
        return [run for run in found if "superseded" not in run.data.tags]

    def start_run(self, stage: str) -> StageRun:
        """A new run for a stage."""
        tags = {"mlflow.parentRunId": self.parent, "stage": stage} | _source(
            f"stages/{stage.partition('@')[0]}.py"
        )
        run = self.runs[stage] = StageRun(
            self.client.create_run(self.experiment, _ms(_started), tags, stage).info.run_id
        )
        self.mark_running(stage)
        return run

    def start_publication_run(self, model: str) -> str:
        """Id of a new run for the publication of a model, below the run of the pipeline that evaluated it."""
        content = stage_outputs.digest_files(stage_outputs.output_files(stage_outputs.LAST_STAGE))
        evaluated = self.find({"stage": stage_outputs.LAST_STAGE, "content": content})
        parent = (
            {"mlflow.parentRunId": evaluated[0].data.tags["mlflow.parentRunId"]}
            if evaluated
            else {}
        )
        tags = {"stage": f"publish@{model}", **parent, **self.code, **_source("stages/publish.py")}
        return self.client.create_run(
            self.experiment, _ms(_started), tags, f"publish@{model}"
        ).info.run_id

    def mark_running(self, stage: str) -> None:
        """Show a stage as running, until it has logged its results or has been killed."""
        for run in (self.runs[stage].id, self.parent):
            self.client.update_run(run, status="RUNNING")

    def find_or_start_run(self, stage: str, metrics: Metrics, complete: bool = False) -> StageRun:
        """The run that ``metrics`` belong in: the stage's under this parent, unless it contradicts them; then a new one.

        ``complete``: there are no other metrics, so that a run with more of them contradicts.
        """
        if stage not in self.runs and (
            found := self.find({"mlflow.parentRunId": self.parent, "stage": stage})
        ):
            run = self.runs[stage] = StageRun(found[0].info.run_id, found[0].data.tags)
            history = [
                m
                for key in found[0].data.metrics
                for m in self.client.get_metric_history(run.id, key)
            ]
            run.metrics = {(m.key, m.step): m.value for m in history}
            if "content" not in run.tags:  # it was interrupted
                self.mark_running(stage)
        run = self.runs.get(stage) or self.start_run(stage)
        more = complete and run.metrics.keys() - metrics.keys()
        if more or not all(
            _same(run.metrics.get(key, value), value) for key, value in metrics.items()
        ):
            return self.supersede_run(stage)
        return run

    def supersede_run(self, stage: str) -> StageRun:
        """Mark a stage's run as superseded, and start a new one."""
        self.mark_killed(stage)
        self.client.set_tag(self.runs[stage].id, "superseded", "true")
        self.client.update_run(self.runs[stage].id, name=f"{stage} (superseded)")
        return self.start_run(stage)

    def mark_killed(self, stage: str) -> None:
        """Mark a stage's run as killed, if it ended before its results were logged."""
        if "content" not in self.runs[stage].tags:
            for run in (self.runs[stage].id, self.parent):
                self.client.set_terminated(run, "KILLED")

    def log(self, run: str, **values: list[Any]) -> None:
        """Log any number of ``metrics`` or ``params``; a call takes 100."""
        for kind, items in values.items():
            for start in range(0, len(items), 100):
                self.client.log_batch(run, **{kind: items[start : start + 100]})

    def log_new_metrics(self, run: StageRun, metrics: Metrics, model: str | None = None) -> None:
        """Log the metrics that a run lacks; those of no single epoch also at the model."""
        from mlflow.entities import Metric

        new = [
            (key, step, value)
            for (key, step), value in metrics.items()
            if (key, step) not in run.metrics
        ]
        now = _ms(time.time())
        self.log(
            run.id,
            metrics=[
                Metric(k, v, now, s, model_id=None if s else model, run_id=run.id)
                for k, s, v in new
            ],
        )
        run.metrics |= metrics

    def find_or_create_model(self, path: Path, source: str | None) -> str:
        """Id of the model with the bytes of a file: MLflow gets digest and path, the weights stay where they are."""
        import mlflow

        tags = {"md5": md5(path), "path": path.as_posix()}
        known = self.client.search_logged_models([self.experiment], f"tags.md5 = '{tags['md5']}'")
        return (
            known
            or [
                mlflow.create_external_model(path.stem, source, tags, experiment_id=self.experiment)
            ]
        )[0].model_id

    def log_stage(
        self, stage: str, params: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        """Log all that a stage has written; nothing if these very bytes are logged under this parent."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        files = stage_outputs.output_files(stage)
        content = stage_outputs.digest_files(files)
        metrics = {
            key: value for path in files for key, value in stage_outputs.read_metrics(path).items()
        }
        run = self.find_or_start_run(stage, metrics, complete=True)
        if run.tags.get("content") == content:
            return
        if "content" in run.tags:
            run = self.supersede_run(stage)
        self.log(run.id, params=_params(params))

        inputs = [Path(path) for path in stage_outputs.dvc_entries(stage, "deps")]
        made = [
            self.find_or_create_model(path, run.id)
            for path in files
            if path.suffix == ".safetensors"
        ]
        used = [
            self.find_or_create_model(path, None)
            for path in inputs
            if path.suffix == ".safetensors"
        ]
        if made:
            self.client.log_outputs(run.id, [LoggedModelOutput(model, 0) for model in made])
        self.log_new_metrics(run, metrics, next(iter([*made, *used]), None))

        datasets = _datasets([*inputs, *(path.parent for path in files)])
        self.client.log_inputs(run.id, datasets, [LoggedModelInput(model) for model in used])
        self.client.log_inputs(self.parent, datasets)

        for path in files:  # a folder's tables name patients and stay here
            if path.suffix in (".png", ".html") or (
                path.suffix in (".json", ".csv") and path.parts[0] != "data"
            ):
                self.client.log_artifact(
                    run.id, str(path), path.parent.name if path.suffix != ".html" else None
                )
        if stage == stage_outputs.LAST_STAGE:
            self.summarize()
        for key, value in {**self.code, **environment, "content": content}.items():
            self.client.set_tag(run.id, key, value)
        run.tags["content"] = content
        self.client.set_terminated(run.id)
        self.client.set_terminated(self.parent)

    def log_pipeline(self) -> bool:
        """Log the pipeline's run without its stages, unless one has these params and results; whether it was necessary.

        For an experiment whose stages DVC took from its cache, so that none of them was executed.
        """
        wanted = {
            "params": _params_digest(),
            "results": stage_outputs.digest_files(
                stage_outputs.output_files(stage_outputs.LAST_STAGE)
            ),
        }
        if name := os.environ.get("DVC_EXP_NAME"):
            wanted["mlflow.runName"] = name
        if self.find(wanted):
            return False
        written = {
            path.parent
            for stage in stage_outputs.stage_names()
            for path in stage_outputs.output_files(stage)
        }
        self.client.log_inputs(self.parent, _datasets(sorted(written)))
        self.summarize()
        self.client.set_terminated(self.parent)
        return True

    def summarize(self) -> None:
        """Give the parent run the main metrics of all stages, the report and a note."""
        from mlflow.entities import Metric

        files = {
            Path(path)
            for stage in stage_outputs.stage_names()
            for path in stage_outputs.dvc_entries(stage, "metrics")
        }
        every = {
            name: value
            for path in sorted(files)
            if path.is_file()
            for (name, _), value in stage_outputs.read_metrics(path).items()
        }
        # Fewer charts and columns: the ends of the intervals are in the note, all numbers in the stages' own runs.
        metrics = {
            name: value for name, value in every.items() if not name.endswith(("_low", "_high"))
        }
        metrics = {
            name: value for name, value in metrics.items() if not name.startswith("diagnostics/")
        }
        metrics = {
            name: value
            for name, value in metrics.items()
            if not name.startswith("data/") or name in DATA_METRICS
        }
        parent = self.client.get_run(self.parent).data
        if not all(
            _same(parent.metrics.get(name, math.inf), value) for name, value in metrics.items()
        ):
            # MLflow shows the value of the highest step, so counting the evaluations makes the newest win whatever the clock.
            # From 0, for MLflow draws bars for a number at step 0 alone, and a line for any other.
            step, now = int(parent.tags.get("evaluations", 0)), _ms(time.time())
            self.client.set_tag(self.parent, "evaluations", str(step + 1))
            self.log(
                self.parent,
                metrics=[Metric(name, value, now, step) for name, value in metrics.items()],
            )
        written = stage_outputs.output_files(stage_outputs.LAST_STAGE)
        for path in written:
            if path.suffix == ".html":
                self.client.log_artifact(self.parent, str(path))
        tags = {
            **self.code,
            "results": stage_outputs.digest_files(written),
            "mlflow.note.content": _note(every, self.code),
        }
        for key, value in tags.items():
            self.client.set_tag(self.parent, key, value)


def _note(metrics: Mapping[str, float], code: Mapping[str, str]) -> str:
    """Markdown: the main metrics of evaluate.json, and the code that they come from."""

    def cell(name: str) -> str:
        value, low, high = (metrics.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
        return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")

    main_metrics = ("clean_accuracy", "balanced_accuracy", "robust_accuracy_worst")
    table = [
        f"| {name} | {cell(f'clean/{name}')} | {cell(f'adv/{name}')} |" for name in main_metrics
    ]
    source = (
        f"Code: {code['mlflow.source.git.commit']}, uncommitted changes: {code['git.uncommitted']}."
    )
    return "\n".join(
        [
            "| | clean | adv |",
            "|---|---|---|",
            *table,
            "",
            source,
            "Full report: Artifacts > report.html.",
        ]
    )


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _same(logged: float, value: float) -> bool:
    """Whether a number is the one that was logged, which may have had more digits than the file."""
    return math.isclose(logged, value, rel_tol=1e-3, abs_tol=1e-4) or (
        math.isnan(logged) and math.isnan(value)
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _params_digest() -> str:
    """One digest for all of params.yaml that is logged."""
    return _digest([(p.key, p.value) for p in _params(flatten(load_params()))])


def _datasets(folders: Sequence[Path]) -> list[Any]:
    """The processed dataset, if it is among these folders, as MLflow takes a dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = []
    for file in (folder / "manifest.csv" for folder in folders):
        if file.is_file():
            size = json.dumps({"num_rows": len(stage_outputs.rows_of(file))})
            data = [
                Dataset(file.parent.as_posix(), md5(file), "local", file.as_posix(), profile=size)
            ]
    return [DatasetInput(d, [InputTag("mlflow.data.context", "pipeline")]) for d in data]


def _source(name: str) -> dict[str, str]:
    return {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def _params(params: Mapping[str, Any]) -> list[Any]:
    """Params as MLflow takes them, without those of the machine: they may change from one stage to the next."""
    from mlflow.entities import Param

    return [
        Param(key, str(value)) for key, value in params.items() if not key.startswith("runtime.")
    ]
