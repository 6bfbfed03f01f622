"""The runs of one pipeline in MLflow: found or created, continued after a kill, superseded by results that contradict them.

The database and the artifacts lie in the main repository (DVC_ROOT), also when DVC runs an experiment in a temporary copy;
the environment variable MLFLOW_TRACKING_URI leads elsewhere.
"""

import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.core.files import md5
from stages.core.params import flatten, load_all
from stages.tracking import stage_outputs
from stages.tracking.environment import code_tags
from stages.tracking.stage_outputs import Scores

EXPERIMENT = "colposcopy-robustness"
DATA_SCORES = ("data/images", "data/groups.total", "data/rejected.total")  # of the photographs, what a pipeline's run shows
# What the README's link shows of each run: MLflow's own table has no numbers until columns are chosen.
COLUMNS = {
    "params.`attack.eps`": 100,  # pixels wide
    "metrics.`clean/clean_accuracy`": 190,
    "metrics.`clean/robust_accuracy_worst`": 190,
    "metrics.`adv/clean_accuracy`": 190,
    "metrics.`adv/robust_accuracy_worst`": 190,
}
VIEW_KEY = "mlflow.sharedViewState.headlines"  # of the experiment's tag; "headlines" stands in the link
VIEW = json.dumps({"selectedColumns": [*COLUMNS], "columnOrder": [*COLUMNS], "columnWidths": COLUMNS})

_started = time.time()


@dataclass
class Run:
    id: str
    tags: dict[str, str] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)  # what MLflow has


@dataclass
class MlflowSession:
    """A connection to MLflow."""

    client: Any
    experiment: str
    lock: FileLock
    code: dict[str, str]  # tags that say which
    runs: dict[str, Run] = field(default_factory=dict)  # by stage

    @functools.cached_property
    def parent(self) -> str:
        """The run of the configuration in params.yaml, found or created."""
        name, baseline = os.environ.get("DVC_EXP_NAME") or "workspace", self.code["mlflow.source.git.commit"]
        baseline = os.environ.get("DVC_EXP_BASELINE_REV") or baseline
        params = _params(flatten(load_all()))
        key = _digest([name, baseline, [(p.key, p.value) for p in params]])
        with self.lock:
            tags = {"pipeline": key, "params": _params_digest(), "dvc.baseline": baseline, **self.code, **_source("dvc.yaml")}
            found = self.find({"pipeline": key})
            run = (found or [self.client.create_run(self.experiment, _ms(_started), tags, name)])[0].info.run_id
        self.log(run, params=params)
        return run

    def find(self, tags: Mapping[str, str]) -> list[Any]:
        """Runs with these tags that no later result has superseded."""
        found = self.client.search_runs([self.experiment], " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items()))
        return [run for run in found if "superseded" not in run.data.tags]

    def begin(self, stage: str) -> Run:
        """A new run for a stage."""
        tags = {"mlflow.parentRunId": self.parent, "stage": stage} | _source(f"stages/{stage.partition('@')[0]}.py")
        run = self.runs[stage] = Run(self.client.create_run(self.experiment, _ms(_started), tags, stage).info.run_id)
        self.watch(stage)
        return run

    def begin_publication(self, model: str) -> str:
        """Id of a new run for the publication of a model, below the run of the pipeline whose results it is judged by."""
        content = stage_outputs.content_of(stage_outputs.written(stage_outputs.LAST_STAGE))
        judged = self.find({"stage": stage_outputs.LAST_STAGE, "content": content})
        parent = {"mlflow.parentRunId": judged[0].data.tags["mlflow.parentRunId"]} if judged else {}
        tags = {"stage": f"publish@{model}", **parent, **self.code, **_source("stages/publish.py")}
        return self.client.create_run(self.experiment, _ms(_started), tags, f"publish@{model}").info.run_id

    def watch(self, stage: str) -> None:
        """Show a stage as running, until it has logged its results or is abandoned."""
        for run in (self.runs[stage].id, self.parent):
            self.client.update_run(run, status="RUNNING")

    def run_for(self, stage: str, scores: Scores, complete: bool = False) -> Run:
        """The run that ``scores`` belong in: the stage's under this parent, unless it contradicts them; then a new one.

        ``complete``: there are no other scores, so that a run with more of them contradicts.
        """
        if stage not in self.runs and (found := self.find({"mlflow.parentRunId": self.parent, "stage": stage})):
            run = self.runs[stage] = Run(found[0].info.run_id, found[0].data.tags)
            history = [m for key in found[0].data.metrics for m in self.client.get_metric_history(run.id, key)]
            run.scores = {(m.key, m.step): m.value for m in history}
            if "content" not in run.tags:  # it was killed
                self.watch(stage)
        run = self.runs.get(stage) or self.begin(stage)
        more = complete and run.scores.keys() - scores.keys()
        if more or not all(_same(run.scores.get(key, value), value) for key, value in scores.items()):
            return self.supersede(stage)
        return run

    def supersede(self, stage: str) -> Run:
        """Leave a stage's run to history, and begin a new one."""
        self.abandon(stage)
        self.client.set_tag(self.runs[stage].id, "superseded", "true")
        self.client.update_run(self.runs[stage].id, name=f"{stage} (superseded)")
        return self.begin(stage)

    def abandon(self, stage: str) -> None:
        """Mark a stage's run as killed, if it ended before its results were logged."""
        if "content" not in self.runs[stage].tags:
            for run in (self.runs[stage].id, self.parent):
                self.client.set_terminated(run, "KILLED")

    def log(self, run: str, **values: list[Any]) -> None:
        """Log any number of ``metrics`` or ``params``; a call takes 100."""
        for kind, items in values.items():
            for start in range(0, len(items), 100):
                self.client.log_batch(run, **{kind: items[start : start + 100]})

    def add(self, run: Run, scores: Scores, model: str | None = None) -> None:
        """Log the scores that a run lacks; those of no single epoch also at the model."""
        from mlflow.entities import Metric

        new = [(key, step, value) for (key, step), value in scores.items() if (key, step) not in run.scores]
        now = _ms(time.time())
        self.log(run.id, metrics=[Metric(k, v, now, s, model_id=None if s else model, run_id=run.id) for k, s, v in new])
        run.scores |= scores

    def model(self, path: Path, source: str | None) -> str:
        """Id of the model with the bytes of a file: MLflow gets digest and path, the weights stay where they are."""
        import mlflow

        tags = {"md5": md5(path), "path": path.as_posix()}
        known = self.client.search_logged_models([self.experiment], f"tags.md5 = '{tags['md5']}'")
        return (known or [mlflow.create_external_model(path.stem, source, tags, experiment_id=self.experiment)])[0].model_id

    def log_stage(self, stage: str, params: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Log all that a stage has written; nothing if these very bytes are logged under this parent."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        files = stage_outputs.written(stage)
        content = stage_outputs.content_of(files)
        scores = {key: value for path in files for key, value in stage_outputs.scores_of(path).items()}
        run = self.run_for(stage, scores, complete=True)
        if run.tags.get("content") == content:
            return
        if "content" in run.tags:
            run = self.supersede(stage)
        self.log(run.id, params=_params(params))

        inputs = [Path(path) for path in stage_outputs.entries(stage, "deps")]
        made = [self.model(path, run.id) for path in files if path.suffix == ".safetensors"]
        used = [self.model(path, None) for path in inputs if path.suffix == ".safetensors"]
        if made:
            self.client.log_outputs(run.id, [LoggedModelOutput(model, 0) for model in made])
        self.add(run, scores, (made or used or [None])[0])

        datasets = _datasets([*inputs, *(path.parent for path in files)])
        self.client.log_inputs(run.id, datasets, [LoggedModelInput(model) for model in used])
        self.client.log_inputs(self.parent, datasets)

        for path in files:  # a folder's tables name patients and stay here
            if path.suffix in (".png", ".html") or (path.suffix in (".json", ".csv") and path.parts[0] != "data"):
                self.client.log_artifact(run.id, str(path), path.parent.name if path.suffix != ".html" else None)
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
            "results": stage_outputs.content_of(stage_outputs.written(stage_outputs.LAST_STAGE)),
        }
        if name := os.environ.get("DVC_EXP_NAME"):
            wanted["mlflow.runName"] = name
        if self.find(wanted):
            return False
        written = {path.parent for stage in stage_outputs.stage_names() for path in stage_outputs.written(stage)}
        self.client.log_inputs(self.parent, _datasets(sorted(written)))
        self.summarize()
        self.client.set_terminated(self.parent)
        return True

    def summarize(self) -> None:
        """Give the parent run the main metrics of all stages, the report and a note."""
        from mlflow.entities import Metric

        files = {Path(path) for stage in stage_outputs.stage_names() for path in stage_outputs.entries(stage, "metrics")}
        every = {
            name: value
            for path in sorted(files)
            if path.is_file()
            for (name, _), value in stage_outputs.scores_of(path).items()
        }
        # Fewer charts and columns: the ends of the intervals are in the note, all numbers in the stages' own runs.
        scores = {name: value for name, value in every.items() if not name.endswith(("_low", "_high"))}
        scores = {name: value for name, value in scores.items() if not name.startswith("diagnostics/")}
        scores = {name: value for name, value in scores.items() if not name.startswith("data/") or name in DATA_SCORES}
        parent = self.client.get_run(self.parent).data
        if not all(_same(parent.metrics.get(name, math.inf), value) for name, value in scores.items()):
            # MLflow shows the value of the highest step, so counting the evaluations makes the newest win whatever the clock.
            # From 0, for MLflow draws bars for a number at step 0 alone, and a line for any other.
            step, now = int(parent.tags.get("evaluations", 0)), _ms(time.time())
            self.client.set_tag(self.parent, "evaluations", str(step + 1))
            self.log(self.parent, metrics=[Metric(name, value, now, step) for name, value in scores.items()])
        written = stage_outputs.written(stage_outputs.LAST_STAGE)
        for path in written:
            if path.suffix == ".html":
                self.client.log_artifact(self.parent, str(path))
        tags = {**self.code, "results": stage_outputs.content_of(written), "mlflow.note.content": _note(every, self.code)}
        for key, value in tags.items():
            self.client.set_tag(self.parent, key, value)


def _note(scores: Mapping[str, float], code: Mapping[str, str]) -> str:
    """Markdown: the headlines of evaluate.json, and which code they come from."""

    def cell(name: str) -> str:
        value, low, high = (scores.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
        return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")

    headlines = ("clean_accuracy", "balanced_accuracy", "robust_accuracy_worst")
    table = [f"| {name} | {cell(f'clean/{name}')} | {cell(f'adv/{name}')} |" for name in headlines]
    source = f"Code: {code['mlflow.source.git.commit']}, uncommitted changes: {code['git.uncommitted']}."
    return "\n".join(
        ["| | clean | adv |", "|---|---|---|", *table, "", source, "The whole account: `report.html` below Artifacts."]
    )


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _same(logged: float, value: float) -> bool:
    """Whether a number is the one that was logged, which may have had more digits than the file."""
    return math.isclose(logged, value, rel_tol=1e-3, abs_tol=1e-4) or (math.isnan(logged) and math.isnan(value))


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _params_digest() -> str:
    """One digest for all of params.yaml that MLflow is told."""
    return _digest([(p.key, p.value) for p in _params(flatten(load_all()))])


def _datasets(folders: Sequence[Path]) -> list[Any]:
    """The store of photographs, if it is among these folders, as MLflow takes a dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = []
    for file in (folder / "manifest.csv" for folder in folders):
        if file.is_file():
            size = json.dumps({"num_rows": len(stage_outputs.rows_of(file))})
            data = [Dataset(file.parent.as_posix(), md5(file), "local", file.as_posix(), profile=size)]
    return [DatasetInput(d, [InputTag("mlflow.data.context", "pipeline")]) for d in data]


def _source(name: str) -> dict[str, str]:
    return {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def _params(params: Mapping[str, Any]) -> list[Any]:
    """Params as MLflow takes them, without those of the machine: they may change from one stage to the next."""
    from mlflow.entities import Param

    return [Param(key, str(value)) for key, value in params.items() if not key.startswith("runtime.")]


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the main repository; a relative SQLite path counts from there too."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{(root / path).as_posix()}"


def open_session() -> MlflowSession:
    """Open MLflow: 2 to 3 s, or 10 s where the database isn't there yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is gone costs seconds, not minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd())
    uri = tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    # A server has a place of its own for artifacts; ours must not be the temporary folder of an experiment.
    place = (root / "mlartifacts").resolve().as_uri() if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES else None
    # Stages that start at once must create nothing twice: MLflow's own creation of a database fails in all of them but one.
    with (lock := FileLock(root / ".mlflow.lock", timeout=300)):
        if place:  # whoever creates the database also places MLflow's own experiment "Default": left alone, where it stands
            SqlAlchemyStore(uri, place)
        client = mlflow.MlflowClient(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=place)
        if known is None or known.tags.get(VIEW_KEY) != VIEW:
            client.set_experiment_tag(experiment, VIEW_KEY, VIEW)
    return MlflowSession(client, experiment, lock, code_tags())
