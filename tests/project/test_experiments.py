"""DVC experiments: queued, in a temporary folder, compared, applied; and their runs in MLflow."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
import vl_convert
import yaml

from stages.tracking.connection import EXPERIMENT
from tests.helpers.projects import executed_stages, run
from tests.helpers.repository import charts_of

pytestmark = pytest.mark.slow
EPS_VALUES = (0.004, 0.012)  # of no other test: DVC would take their results from its cache
RERUN = {"attack_eval@clean", "train_adv", "attack_eval@adv", "evaluate"}  # by another eps


@pytest.fixture(scope="module")
def project(pipeline_project, tmp_path_factory):
    """A copy of the finished project in which two workers have run one queued experiment each.

    MLflow has no database when the two start.
    """
    folder = tmp_path_factory.mktemp("experiments") / "project"
    shutil.copytree(
        pipeline_project,
        folder,
        symlinks=True,
        ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"),
    )
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-qm", "Results", "--allow-empty", cwd=folder)
    run(
        "dvc",
        "exp",
        "run",
        "--queue",
        "-S",
        f"attack.eps={','.join(map(str, EPS_VALUES))}",
        cwd=folder,
    )
    try:
        run("dvc", "queue", "start", "-j", "2", cwd=folder)
        end = time.monotonic() + 900
        while re.search("Queued|Running", status := run("dvc", "queue", "status", cwd=folder)):
            assert time.monotonic() < end, status
            time.sleep(3)
        assert status.count("Success") == 2, status + logs(folder)
        yield folder
    finally:
        end_workers(folder)


def logs(folder: Path) -> str:
    return "\n".join(file.read_text() for file in (folder / ".dvc/tmp/exps/run").glob("*/*.out"))


def end_workers(folder: Path) -> None:
    """No worker outlives the test, although idle ones end by themselves after some seconds."""
    pids = [int(file.read_text()) for file in (folder / ".dvc/tmp/exps/celery").glob("*.pid")]
    run("dvc", "queue", "stop", "--kill", cwd=folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def show(folder: Path, revision: str, file: str) -> dict:
    return yaml.safe_load(run("git", "show", f"{revision}:{file}", cwd=folder))


@pytest.fixture(scope="module")
def queued(project):
    """eps -> name and commit of the queued experiments."""
    lines = run(
        "git",
        "for-each-ref",
        "--format=%(objectname) %(refname:lstrip=-1)",
        "refs/exps",
        cwd=project,
    ).splitlines()
    # DVC keeps refs of its own there, too.
    named = [line.split() for line in lines if re.fullmatch(r"\w+ \w+-\w+", line)]
    found = {
        show(project, commit, "params.yaml")["attack"]["eps"]: (name, commit)
        for commit, name in named
    }
    return {
        eps: found[eps] for eps in found if eps in EPS_VALUES
    }  # the copied project may bring experiments of its own


def logged_runs(folder: Path) -> dict[str, tuple]:
    """Name of the experiment -> its run, and its children by stage; from the main repository."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "stage" not in run.data.tags]
    return {
        parent.data.tags["dvc.experiment"]: (
            parent,
            {
                r.data.tags["stage"]: r
                for r in runs
                if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
            },
        )
        for parent in parents
    }


def artifacts(run) -> set[str]:
    folder = Path(urlsplit(run.info.artifact_uri).path)
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_two_simultaneous_workers_log_everything_in_the_main_repository(project, queued):
    assert sorted(queued) == sorted(EPS_VALUES)
    assert not (
        warnings := [line for line in logs(project).splitlines() if "is not logged" in line]
    ), warnings
    logged = logged_runs(project)
    assert set(logged) == {name for name, _ in queued.values()}
    for name, commit in queued.values():
        parent, children = logged[name]
        assert set(children) == RERUN, "the clean model and the dataset come from the cache"
        assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
        expected = show(project, commit, "metrics/evaluate.json")
        for model in ("clean", "adv"):
            assert (
                parent.data.metrics[f"{model}/robust_accuracy_worst"]
                == expected[model]["robust_accuracy_worst"]
            )
        assert all(
            Path(urlsplit(r.info.artifact_uri).path).is_relative_to(project)
            for r in children.values()
        )
        assert artifacts(parent) == {"checklist.html", "report.html"}
        assert artifacts(children["evaluate"]) >= {
            "report.html",
            "metrics/evaluate.json",
            "plots/robustness.csv",
        }
        assert artifacts(children["train_adv"]) == {"plots/training_adv.csv"}
    assert not list((project / ".dvc/tmp/exps").glob("tmp*")), (
        "DVC has deleted the temporary folders"
    )


def test_experiment_in_a_temporary_folder_leaves_the_workspace_unchanged(project):
    before = run("git", "status", "--porcelain", cwd=project)
    output = run(
        "dvc",
        "exp",
        "run",
        "--temp",
        "-n",
        "more-resamples",
        "-S",
        "evaluate.bootstrap=120",
        cwd=project,
    )
    assert executed_stages(output) == ["evaluate"]
    assert run("git", "status", "--porcelain", cwd=project) == before
    parent, children = logged_runs(project)["more-resamples"]
    assert set(children) == {"evaluate"}
    assert parent.data.params["evaluate.bootstrap"] == "120"
    assert artifacts(parent) == {"checklist.html", "report.html"}
    # Cached stages log nothing, yet the run of the experiment has their numbers.
    assert "clean/clean_accuracy" in parent.data.metrics


def test_no_photograph_is_in_the_tree_of_an_experiment(project, queued):
    """What `dvc exp push` sends: charts, tables; pictures of photographs stay in DVC's cache."""
    for _, commit in queued.values():
        files = run("git", "ls-tree", "-r", "--name-only", commit, cwd=project).splitlines()
        assert {
            file for file in files if file.startswith(("plots/", "data/")) and file.endswith(".png")
        } == {f"plots/{chart}.png" for chart in ("overview", "robustness", "training")}
    assert (project / "plots/examples_clean.png").exists()


def test_params_and_metrics_diff_name_the_differences(project, queued):
    names = [name for name, _ in queued.values()]
    (change,) = json.loads(run("dvc", "params", "diff", *names, "--json", cwd=project))[
        "params.yaml"
    ].items()
    assert change[0] == "attack.eps"
    assert (change[1]["old"], change[1]["new"]) == tuple(queued)
    changed = json.loads(run("dvc", "metrics", "diff", "HEAD", names[0], "--json", cwd=project))
    assert "metrics/data.json" not in changed
    assert "eps" in changed["metrics/evaluate.json"]


def test_plots_diff_draws_every_chart_offline(project, queued):
    commits = {"HEAD": "HEAD"} | dict(queued.values())  # of each name
    names = list(commits)
    run(sys.executable, "-m", "tools.offline_plots", cwd=project)
    run("dvc", "plots", "diff", *names, "-o", "page", cwd=project)
    page = (project / "page/index.html").read_text(encoding="utf-8")
    shutil.rmtree(project / "page")
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert "window.vegaEmbed=" in page
    charts = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*\});\n", page)]
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    tables = charts_of(stages)
    assert {chart["title"]["text"] for chart in charts} == tables.keys()
    for chart in charts:
        title, rows = chart["title"]["text"], pd.DataFrame(chart["data"]["values"])
        for name, commit in commits.items():
            table = run("git", "show", f"{commit}:{tables[title]}", cwd=project)
            assert len(rows[rows["rev"] == name]) == len(table.splitlines()) - 1, title
        if title == "Confusion matrix":  # each cell is one row, without aggregation
            assert not re.search("aggregate|impute", json.dumps(chart))
            cell = ["model", "attack", "actual", "predicted", "rev"]
            assert not rows.duplicated(cell).any()
        drawn = vl_convert.vegalite_to_svg(chart, vl_version="5.8")
        assert all(name in drawn for name in names)
        assert "NaN" not in drawn
        marks = re.findall(r'class="mark-\w+ role-mark[^"]*"[^>]*>(.*?)</g>', drawn, re.S)
        assert sum(len(re.findall("<(?:path|text)", mark)) for mark in marks) >= 2 * len(names), (
            chart["title"]["text"]
        )


def test_experiment_can_be_applied_or_become_a_branch(project, queued):
    name, commit = queued[EPS_VALUES[0]]
    run("dvc", "exp", "branch", name, "kept", cwd=project)
    assert show(project, "kept", "params.yaml")["attack"]["eps"] == EPS_VALUES[0]
    run("dvc", "exp", "apply", name, cwd=project)
    try:
        assert json.loads((project / "metrics/evaluate.json").read_text()) == show(
            project, commit, "metrics/evaluate.json"
        )
        assert executed_stages(run("dvc", "repro", cwd=project)) == [], "its files are restored"
    finally:
        run("git", "reset", "-q", "--hard", cwd=project)
        run("dvc", "checkout", cwd=project)


def test_cached_experiment_runs_no_stage_and_can_be_logged_later(project, queued):
    output = run(
        "dvc", "exp", "run", "-n", "again", "-S", f"attack.eps={EPS_VALUES[1]}", cwd=project
    )
    assert executed_stages(output) == []
    assert "again" not in logged_runs(project), "no stage ran that could have logged"
    run(sys.executable, "-m", "stages.tracking", cwd=project, DVC_EXP_NAME="again")
    parent, children = logged_runs(project)["again"]
    worker_parent, worker_children = logged_runs(project)[queued[EPS_VALUES[1]][0]]
    assert not children.keys() & worker_children.keys(), (
        "what the worker has logged is not logged again"
    )
    assert parent.data.metrics == worker_parent.data.metrics
    assert artifacts(parent) == {"checklist.html", "report.html"}
    run("git", "reset", "-q", "--hard", cwd=project)
    run("dvc", "checkout", cwd=project)
