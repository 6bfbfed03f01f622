"""What MLflow is told; that it is told once, never untruly, and never at the cost of a result. Real databases and processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import stages.tracking.__main__ as sync
from stages.core.params import load_params
from stages.tracking import stage_logging, stage_outputs
from stages.tracking.mlflow_runs import COLUMNS, EXPERIMENT, VIEW_KEY, tracking_uri
from tests.helpers.repository import ROOT

STAGES = ("preprocess", "train_clean", "attack_eval@clean", "train_adv", "attack_eval@adv", "evaluate")
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


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def epochs(model, count=3):
    """Rows as fit() hands them out, with all their digits."""
    base = {"clean": 1, "adv": 2}[model]
    return [
        {"epoch": e, "val_loss": base / (e + 1 / 3), "val_clean_accuracy": 1 - 1 / (e + 2 / 3)} for e in range(1, count + 1)
    ]


def make_project(folder, name="a"):
    """The files that the six stages leave; another name, other bytes."""
    write(folder / "dvc.yaml", PIPELINE)
    shutil.copy(ROOT / "params.yaml", folder)
    write(folder / "data/processed/manifest.csv", f"path,label\n{name}.jpg,x\n2.jpg,y\n")
    write(folder / "metrics/data.json", json.dumps({"images": 2, "train": {"CIN2+": 1}, "source": name}))
    write(folder / "plots/crops.png", f"{name} png")
    for model in ("clean", "adv"):
        rows = epochs(model)
        lines = [f"{r['epoch']},{r['val_loss']:.6g},{r['val_clean_accuracy']:.6g},,{int(r['epoch'] == 2)}" for r in rows]
        write(
            folder / f"plots/training_{model}.csv",
            "\n".join(["epoch,val_loss,val_clean_accuracy,val_robust_loss,chosen", *lines, ""]),
        )
        write(folder / f"data/models/{model}.safetensors", f"{name} weights of {model}")
        rows = [("none", 0, "x", "x"), ("none", 0, "y", "x"), ("pgd", 8 / 255, "x", "y"), ("pgd", 0.25 / 255, "x", "x")]
        table = "\n".join(f"{a},{eps:.6g},{label},{prediction}" for a, eps, label, prediction in rows)
        write(folder / f"data/predictions/{model}/predictions.csv", f"attack,eps,label,prediction\n{table}\n")
        write(folder / f"data/predictions/{model}/examples/0.png", f"{name} {model} png")
    scores = {
        model: {"clean_accuracy": 0.75, "clean_accuracy_low": 0.7, "clean_accuracy_high": 0.8, "robust_accuracy_worst": 0.5}
        for model in ("clean", "adv")
    }
    write(folder / "metrics/evaluate.json", json.dumps({**scores, "n": 2}))
    write(folder / "plots/robustness.csv", "model,eps,accuracy\nclean,0,1\n")
    write(folder / "data/report.html", "<p>report</p>")


def script(folder, body, **env):
    """A process of its own, as DVC would start it."""
    code = "import os, signal\nfrom stages.tracking import stage_logging as tracking\n"
    code += f"from stages.core.params import load_params\n{body}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def first_use(tmp_path_factory):
    """Two stages of one experiment in a temporary copy that start at once where there is no database yet."""
    folder, copy = tmp_path_factory.mktemp("first_use"), tmp_path_factory.mktemp("copy")
    make_project(copy, "first use")
    env, body = {"DVC_EXP_NAME": "race", "DVC_ROOT": str(folder)}, "tracking.log_stage('{}', load_params('seed'))"
    both = [script(copy, body.format(stage), **env) for stage in ("preprocess", "train_clean")]
    return folder, [process.communicate(timeout=300)[1] for process in both]


def restart(monkeypatch):
    """As a new process: nothing is remembered."""
    stage_logging.current_session.cache_clear()
    monkeypatch.setattr(stage_logging, "_failed", False)


@pytest.fixture
def project(first_use, tmp_path, monkeypatch):
    """A project whose pipeline has run, with a database of its own."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    restart(monkeypatch)
    make_project(tmp_path, tmp_path.name)
    shutil.copy(first_use[0] / "mlflow.db", tmp_path)
    yield tmp_path
    stage_logging.current_session.cache_clear()


def log_all():
    for stage in STAGES:
        if stage.startswith("train_"):
            for row in epochs(stage.removeprefix("train_")):
                stage_logging.log_epoch(stage, row)
        stage_logging.log_stage(stage, load_params("seed", "attack", "runtime"))


def everything(uri):
    """(parents, children, all of it): every run but those of ``first_use``, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = [client.get_run(r.info.run_id) for e in found for r in client.search_runs([e.experiment_id])]
    race = {r.info.run_id for r in runs if r.info.run_name == "race"}
    runs = [r for r in runs if not race & {r.info.run_id, r.data.tags.get("mlflow.parentRunId")}]
    history = {
        (r.info.run_id, k): [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, k)]
        for r in runs
        for k in r.data.metrics
    }
    files = {
        r.info.run_id: sorted(f.path for d in client.list_artifacts(r.info.run_id) for f in files_below(client, r, d))
        for r in runs
    }
    state = (
        [(r.info.to_proto().SerializeToString(), sorted(r.data.tags.items()), r.inputs.to_dictionary(), files) for r in runs],
        history,
    )
    parents = [r for r in runs if "stage" not in r.data.tags]
    return parents, {r.info.run_name: r for r in runs if "stage" in r.data.tags}, history, files, state


def files_below(client, run, entry):
    return client.list_artifacts(run.info.run_id, entry.path) if entry.is_dir else [entry]


def local(folder):
    return everything(f"sqlite:///{folder}/mlflow.db")


def test_import_is_light():
    code = "import sys, stages.tracking.stage_logging; print([m for m in ('mlflow', 'torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"


def test_two_processes_create_one_database_and_one_parent(first_use):
    from mlflow import MlflowClient

    folder, errors = first_use
    assert not [e for e in errors if "is not logged" in e]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert sorted(r.info.run_name for r in client.search_runs([experiment.experiment_id])) == [
        "preprocess",
        "race",
        "train_clean",
    ]
    assert experiment.artifact_location == (folder / "mlartifacts").as_uri()
    assert VIEW_KEY in experiment.tags
    # Also of runs that the user starts, when the first experiment ran in a temporary copy.
    assert client.get_experiment("0").artifact_location == (folder / "mlartifacts/0").as_uri()


def test_a_pipeline_is_one_run_per_stage_below_one_parent(project):
    log_all()
    (parent,), children, history, files, _ = local(project)
    assert sorted(children) == sorted(STAGES)
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {parent.info.run_id}
    assert {r.info.status for r in [parent, *children.values()]} == {"FINISHED"}
    assert parent.info.run_name == "workspace"

    train = children["train_clean"]
    assert [step for step, _ in history[train.info.run_id, "epoch/val_loss"]] == [1, 2, 3]
    assert train.data.metrics["model/epoch"] == 2
    assert "epoch/val_robust_loss" not in train.data.metrics  # its cells are empty
    (made,), (used,) = train.outputs.model_outputs, children["attack_eval@clean"].inputs.model_inputs
    assert made.model_id == used.model_id
    assert children["attack_eval@clean"].data.metrics == {
        "clean_accuracy": 0.5,
        "robust_accuracy/pgd.eps_8_255": 0,
        "robust_accuracy/pgd.eps_0.25_255": 1,
    }
    assert all(column.split("`")[1] in {**parent.data.params, **parent.data.metrics} for column in COLUMNS)
    for run in [parent, *children.values()]:
        if run.info.run_name != "evaluate":  # which reads the tables of predictions alone
            assert [d.dataset.digest for d in run.inputs.dataset_inputs] == [
                stage_outputs.md5(Path("data/processed/manifest.csv"))
            ]

    assert children["preprocess"].data.metrics == {"data/images": 2, "data/train.CIN2_": 1}
    assert parent.data.metrics.keys() == {"data/images", "n"} | {
        f"{model}/{name}" for model in ("clean", "adv") for name in ("clean_accuracy", "robust_accuracy_worst")
    }
    assert {step for key in parent.data.metrics for step, _ in history[parent.info.run_id, key]} == {0}, "drawn as bars"
    assert parent.data.params["attack.norm"] == "linf"
    assert not [key for key in parent.data.params if key.startswith("runtime.")]
    assert "| clean_accuracy | 0.750 [0.700, 0.800] |" in parent.data.tags["mlflow.note.content"]
    assert "| robust_accuracy_worst | 0.500 | 0.500 |" in parent.data.tags["mlflow.note.content"]
    tags = children["evaluate"].data.tags
    assert tags["version.numpy"]
    assert f"{os.cpu_count()} cores" in tags["device"]
    assert tags["git.uncommitted"] == "none"

    named = {name: files[run.info.run_id] for name, run in children.items()}
    assert named["attack_eval@adv"] == ["examples/0.png"]
    assert named["train_adv"] == ["plots/training_adv.csv"]
    assert named["evaluate"] == ["metrics/evaluate.json", "plots/robustness.csv", "report.html"]
    assert files[parent.info.run_id] == ["report.html"]


def test_the_same_again_changes_nothing(project, monkeypatch):
    log_all()
    before = local(project)[-1]
    restart(monkeypatch)
    log_all()
    assert local(project)[-1] == before


def test_other_results_get_a_run_of_their_own_and_the_newest_wins_on_a_clock_that_went_back(project, monkeypatch):
    log_all()
    restart(monkeypatch)
    write("metrics/evaluate.json", json.dumps({"n": 1}))
    lines = Path("plots/training_adv.csv").read_text(encoding="utf-8").splitlines()
    write("plots/training_adv.csv", "\n".join([*lines[:-1], "3,9,0.5,,0"]))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    stage_logging.log_stage("train_adv", load_params("seed"))
    stage_logging.log_stage("evaluate", load_params("seed"))
    (parent,), children, history, *_ = local(project)
    assert sorted(children) == sorted([*STAGES, "train_adv (superseded)", "evaluate (superseded)"])
    assert parent.data.metrics["n"] == 1
    assert children["evaluate"].data.metrics == {"n": 1}
    assert history[children["train_adv"].info.run_id, "epoch/val_loss"][-1] == (3, 9)
    assert history[children["train_adv (superseded)"].info.run_id, "epoch/val_loss"][-1] != (3, 9)


def kill_after_two_epochs(project):
    body = f"for row in {epochs('adv', 2)}: tracking.log_epoch('train_adv', row)\nos.kill(os.getpid(), signal.SIGKILL)"
    process = script(project, body)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    _, children, *_ = local(project)
    assert children["train_adv"].info.status == "RUNNING"
    return children["train_adv"].info.run_id


def test_a_killed_training_goes_on_in_its_run_unless_it_goes_another_way(project, monkeypatch):
    killed = kill_after_two_epochs(project)
    for row in epochs("adv")[1:]:  # from the checkpoint before the last epoch that was logged
        stage_logging.log_epoch("train_adv", row)
    stage_logging.log_stage("train_adv", load_params("seed"))
    (_,), children, history, *_ = local(project)
    assert children["train_adv"].info.run_id == killed
    assert children["train_adv"].info.status == "FINISHED"
    assert [step for step, _ in history[killed, "epoch/val_loss"]] == [1, 2, 3]

    restart(monkeypatch)
    stage_logging.log_epoch("train_adv", {"epoch": 1, "val_loss": 7.0})
    _, children, *_ = local(project)
    assert children["train_adv"].info.run_id != killed
    assert children["train_adv (superseded)"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_stage_that_ends_early_is_shown_as_killed(project):
    process = script(project, "tracking.log_epoch('train_adv', {'epoch': 1, 'val_loss': 1})\nraise FloatingPointError")
    process.communicate(timeout=300)
    (parent,), children, *_ = local(project)
    assert [children["train_adv"].info.status, parent.info.status] == ["KILLED", "KILLED"]


def test_the_command_logs_what_is_missing_and_leaves_out_what_is_out_of_date(project, monkeypatch, capsys):
    stage_logging.log_stage("preprocess", load_params("seed"))
    restart(monkeypatch)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "the results were committed since")
    monkeypatch.setattr(sync, "_stale", lambda: {"evaluate": []})
    assert sync.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "preprocess: logged already",
        "train_clean: logged",
        "train_adv: logged",
        "attack_eval@clean: logged",
        "attack_eval@adv: logged",
        "evaluate: not logged: `dvc status` calls its files out of date",
    ]
    _, children, *_ = local(project)
    assert children["train_clean"].data.params.keys() >= {"seed", "train_clean.lr"}
    assert "attack.norm" not in children["train_clean"].data.params
    assert "device" not in children["train_clean"].data.tags  # nobody knows
    before = local(project)[-1]
    restart(monkeypatch)
    assert sync.main() == 1
    assert local(project)[-1] == before


def test_the_command_logs_a_pipeline_that_came_wholly_from_the_cache(project, monkeypatch, capsys):
    log_all()
    monkeypatch.setattr(sync, "_stale", dict)
    for name, told in (("", False), ("tiny-mole", True), ("tiny-mole", False)):
        restart(monkeypatch)
        monkeypatch.setenv("DVC_EXP_NAME", name)
        assert sync.main() == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{stage}: logged already" for stage in stage_outputs.stage_names()] + told * ["the pipeline: logged"]
    parents, children, _, files, _ = local(project)
    assert sorted(children) == sorted(STAGES), "none was executed again"
    executed, cached = sorted(parents, key=lambda run: run.info.run_name, reverse=True)
    assert [run.info.run_name for run in (executed, cached)] == ["workspace", "tiny-mole"]
    assert cached.info.status == "FINISHED"
    assert cached.data.metrics == executed.data.metrics
    assert cached.data.params == executed.data.params
    assert cached.inputs.to_dictionary() == executed.inputs.to_dictionary()
    assert files[cached.info.run_id] == ["report.html"]


def test_a_server_that_is_gone_is_told_once_and_costs_seconds(project, monkeypatch, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    start = time.monotonic()
    log_all()
    assert time.monotonic() - start < 60
    assert [r.getMessage().partition(" (")[0] for r in caplog.records if r.name == stage_logging.__name__] == [
        "MLflow: preprocess is not logged"
    ]


@pytest.mark.parametrize(
    ("stage", "text"), [("train", "expected one of the stages preprocess, .*, got 'train'"), ("evaluate", "JSON")]
)
def test_trouble_is_a_warning(project, caplog, stage, text):
    write("metrics/evaluate.json", "{")
    stage_logging.log_stage(stage, load_params("seed"))
    assert caplog.text.count("is not logged") == 1
    assert re.search(text, caplog.text)


@pytest.mark.parametrize("why", ["params", "rank"])
def test_nothing_is_logged_when_it_is_off(project, monkeypatch, why):
    (project / "mlflow.db").unlink()
    if why == "params":
        write("params.yaml", Path("params.yaml").read_text().replace("tracking: true", "tracking: false"))
    else:
        monkeypatch.setenv("LOCAL_RANK", "1")
    log_all()
    assert not (project / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("", "sqlite:////main/mlflow.db"),
        ("sqlite:///x.db", "sqlite:////main/x.db"),
        ("sqlite:////abs/x.db", "sqlite:////abs/x.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_the_database_lies_in_the_main_repository(monkeypatch, given, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri(Path("/main")) == uri


def test_an_experiment_in_a_temporary_copy_lands_in_the_main_repository(project, first_use, monkeypatch, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    make_project(copy, "copy")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-mole")
    log_all()
    shutil.rmtree(copy)
    (parent,), children, _, files, _ = local(project)
    assert parent.info.run_name == "tiny-mole"
    assert files[children["evaluate"].info.run_id] == ["metrics/evaluate.json", "plots/robustness.csv", "report.html"]


@pytest.mark.slow
def test_a_server_killed_in_between_loses_nothing(project, monkeypatch, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{project}/served.db", "--artifacts-destination", str(project / "served")]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def serve():
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)  # noqa: S310
                return process
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(f"expected a server at {uri}, got no answer in 5 minutes")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    server = serve()
    try:
        stage_logging.log_stage("preprocess", load_params("seed"))
        stage_logging.log_epoch("train_clean", epochs("clean")[0])
        assert not caplog.records
        os.killpg(server.pid, signal.SIGKILL)
        start = time.monotonic()
        for row in epochs("clean")[1:]:
            stage_logging.log_epoch("train_clean", row)
        stage_logging.log_stage("train_clean", load_params("seed"))
        for stage in STAGES[2:]:
            stage_logging.log_stage(stage, load_params("seed"))
        assert time.monotonic() - start < 90
        assert caplog.text.count("is not logged") == 1
        server = serve()
        restart(monkeypatch)
        monkeypatch.setattr(sync, "_stale", dict)
        assert sync.main() == 0
        (parent,), children, history, files, _ = everything(uri)
        assert sorted(children) == sorted(STAGES)
        assert {r.info.status for r in [parent, *children.values()]} == {"FINISHED"}
        assert [step for step, _ in history[children["train_clean"].info.run_id, "epoch/val_loss"]] == [1, 2, 3]
        assert files[parent.info.run_id] == ["report.html"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
