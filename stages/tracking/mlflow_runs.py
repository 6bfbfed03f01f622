"""The runs in MLflow: one for each execution of a stage, below the run of its configuration.

The functions share MLflow's stack of active runs: that of the configuration, then that of a stage.
"""

import hashlib
import json
import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.files import md5
from stages.core.params_file import load_params
from stages.tracking import stage_outputs
from stages.tracking.configuration import run_name, written_params
from stages.tracking.connection import EXPERIMENT, mark_runs_killed, mlflow, open_mlflow
from stages.tracking.environment import START, code_tags
from stages.tracking.stage_outputs import EVALUATION, HEADLINES, LAST_STAGE

NOTE_METRICS = ("clean_accuracy", "balanced_accuracy", "robust_accuracy_worst")
_epochs: set[int] = set()  # that are in the active run


def find(tags: Mapping[str, str]) -> list[Any]:
    """The runs with these tags."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    with open_mlflow():
        return mlflow.search_runs(None, wanted, experiment_names=[EXPERIMENT], output_format="list")


def start_configuration() -> None:
    """Activate the run of params, baseline revision and name of the experiment."""
    code, params = code_tags("dvc.yaml"), load_params()
    experiment = os.environ.get("DVC_EXP_NAME") or "workspace"
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or code["mlflow.source.git.commit"]
    identity = f"{experiment} {baseline} {params.model_dump_json(exclude={'runtime'})}"
    key = {"configuration": hashlib.sha256(identity.encode()).hexdigest()[:16]}
    if found := find(key):
        mlflow.start_run(found[0].info.run_id)
    else:
        tags = {**code, **key, "dvc.baseline": baseline, "dvc.experiment": experiment}
        mlflow.start_run(run_name=run_name(baseline), tags=tags)
    _log_params(written_params())


def start_stage(stage: str) -> None:
    """Activate a new run for this execution of a stage, unless it is active."""
    if (active := mlflow.active_run()) and active.data.tags.get("stage") == stage:
        return
    mark_runs_killed()  # what an attempt that failed has left
    start_configuration()
    client, parent = mlflow.MlflowClient(), mlflow.active_run().info
    tags = {"mlflow.parentRunId": parent.run_id, "stage": stage}
    for run in find(tags):
        if run.info.status == "RUNNING":  # an execution that was killed and could not say so
            client.set_terminated(run.info.run_id, "KILLED")
    tags |= code_tags(f"stages/{stage.partition('@')[0]}.py")
    run = client.create_run(parent.experiment_id, START, tags, stage)
    mlflow.start_run(run.info.run_id, nested=True)
    _epochs.clear()


def log_epoch(stage: str, row: Mapping[str, Any]) -> None:
    """Log an epoch of a training under way."""
    with open_mlflow():
        start_stage(stage)
        mlflow.log_metrics(stage_outputs.epoch_metrics(row), int(row["epoch"]))
        _epochs.add(int(row["epoch"]))


def log_stage(stage: str, params: Container[str], environment: Mapping[str, str]) -> None:
    """Log all that a stage has read and written, and finish its run.

    Args:
        stage: its name in DVC.
        params: the keys that it has read.
        environment: tags.
    """
    with open_mlflow():
        start_stage(stage)
        _log_params({key: value for key, value in written_params().items() if key in params})
        _log_dataset(stage)
        model = _log_models(stage)
        for file in stage_outputs.output_files(stage):
            for epoch, metrics in stage_outputs.read_metrics(file).items():
                if epoch not in _epochs and file != HEADLINES:
                    mlflow.log_metrics(metrics, epoch, model_id=None if epoch else model)
            if file.suffix == ".html":
                mlflow.log_artifact(str(file))
            elif file.suffix == ".png" or file.parts[0] != "data":  # tables there name patients
                mlflow.log_artifact(str(file), file.parent.name)
        mlflow.set_tags({**environment, "content": stage_outputs.content_digest(stage)})
        mlflow.end_run()
        if stage == LAST_STAGE:
            summarize()
        mlflow.end_run()


def log_pipeline() -> bool:
    """Log the results of the configuration, whoever computed them; False if they are logged."""
    with open_mlflow():
        start_configuration()
        is_new = summarize()
        mlflow.end_run()
    return is_new


def summarize() -> bool:
    """Give the active run, that of the configuration, headlines, dataset, report and note.

    Returns:
        False if it has them already.
    """
    results = stage_outputs.content_digest(LAST_STAGE)
    if mlflow.get_run(mlflow.active_run().info.run_id).data.tags.get("results") == results:
        return False
    mlflow.log_metrics(stage_outputs.read_metrics(HEADLINES)[0])
    _log_dataset(LAST_STAGE)
    for file in stage_outputs.output_files(LAST_STAGE):
        if file.suffix == ".html":
            mlflow.log_artifact(str(file))
    code, metrics = code_tags("dvc.yaml"), stage_outputs.read_metrics(EVALUATION)[0]
    mlflow.set_tags({**code, "mlflow.note.content": _note(metrics, code), "results": results})
    return True


def _note(metrics: Mapping[str, float], code: Mapping[str, str]) -> str:
    """Markdown: a table of the main metrics of both models, and the code that they come from."""
    lines = ["| | clean | adv |", "|---|---|---|"]
    for name in NOTE_METRICS:
        cells = [name]
        for key in (f"clean/{name}", f"adv/{name}"):
            cell = f"{metrics.get(key, math.nan):.3f}"
            if f"{key}_low" in metrics:
                cell += f" [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    commit, changes = code["mlflow.source.git.commit"], code["git.uncommitted"]
    lines += ["", f"Code: {commit}, uncommitted changes: {changes}."]
    return "\n".join([*lines, "Full report: Artifacts > report.html."])


def _log_params(params: Mapping[str, str]) -> None:
    """Log params in batches of MLflow's maximum."""
    names = list(params)
    for start in range(0, len(names), 100):
        mlflow.log_params({name: params[name] for name in names[start : start + 100]})


def _log_dataset(stage: str) -> None:
    """Link the processed dataset, if the stage reads or writes it."""
    for folder in stage_outputs.entries(stage, "deps", "outs"):
        file = Path(folder, "manifest.csv")
        if file.is_file():
            rows = json.dumps({"num_rows": len(pd.read_csv(file, dtype=str))})
            dataset = mlflow.entities.Dataset(
                folder, md5(file), "local", file.as_posix(), profile=rows
            )
            context = mlflow.entities.InputTag("mlflow.data.context", "pipeline")
            data = mlflow.entities.DatasetInput(dataset, [context])
            mlflow.MlflowClient().log_inputs(mlflow.active_run().info.run_id, [data])


def _log_models(stage: str) -> str | None:
    """Link the models that a stage reads and writes; the id of the one that its metrics are of.

    MLflow gets their digests and paths, the weights stay where they are.
    """
    client, run, model = mlflow.MlflowClient(), mlflow.active_run().info, None
    made = stage_outputs.entries(stage, "outs")
    # Of the two models that attack_eval@adv reads, dvc.yaml names the attacked one last.
    for path in [*stage_outputs.entries(stage, "deps"), *made]:
        if not path.endswith(".safetensors"):
            continue
        tags = {"md5": md5(Path(path)), "path": path}
        known = client.search_logged_models([run.experiment_id], f"tags.md5 = '{tags['md5']}'")
        source = run.run_id if path in made else None
        name = Path(path).stem
        model = known[0] if known else mlflow.create_external_model(name, source, tags)
        if path in made:
            client.log_outputs(run.run_id, [mlflow.entities.LoggedModelOutput(model.model_id, 0)])
        else:
            client.log_inputs(run.run_id, models=[mlflow.entities.LoggedModelInput(model.model_id)])
    return model.model_id if model else None
