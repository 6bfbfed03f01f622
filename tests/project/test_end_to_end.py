"""The real dvc.yaml on few images with few steps: from the first repro to an experiment."""

import json
import sys

import pytest
import yaml

from tests.helpers.projects import executed_stages, run, set_params

pytestmark = pytest.mark.slow


def test_exactly_the_declared_files_are_written(pipeline_project):
    outs = set()
    lock = yaml.safe_load((pipeline_project / "dvc.lock").read_text())["stages"]
    for stage in lock.values():
        outs |= {out["path"] for out in stage["outs"]}
    assert all((pipeline_project / out).exists() for out in outs)
    new = run("git", "ls-files", "-o", "--exclude-standard", cwd=pipeline_project).splitlines()
    new += run("git", "ls-files", "-m", cwd=pipeline_project).splitlines()
    shown = {out for out in outs if out.startswith(("metrics/", "plots/"))}
    assert set(new) - {"dvc.lock"} <= shown
    written = {
        p.relative_to(pipeline_project).as_posix()
        for d in ("metrics", "plots")
        for p in (pipeline_project / d).iterdir()
    }
    assert written - {"plots/.gitignore"} == shown


def test_metrics_are_in_range_and_complete(pipeline_project):
    metrics = json.loads((pipeline_project / "metrics/evaluate.json").read_text())
    for model in ("clean", "adv"):
        part = metrics[model]
        assert 0 <= part["robust_accuracy_worst"] <= part["clean_accuracy"] <= 1
        assert set(part["robust_accuracy"]) >= {
            "uniform_noise",
            "gaussian_noise",
            "fgsm",
            "bim",
            "pgd",
        }
        assert part["clean_accuracy_low"] <= part["clean_accuracy"] <= part["clean_accuracy_high"]
    data = json.loads((pipeline_project / "metrics/data.json").read_text())
    assert data["rejected"]["total"] == 1
    assert "NaN" not in json.dumps(metrics)


def test_second_repro_does_nothing_and_forced_repro_changes_no_byte(pipeline_project):
    assert not executed_stages(run("dvc", "repro", cwd=pipeline_project))
    before = (pipeline_project / "dvc.lock").read_bytes()
    assert len(executed_stages(run("dvc", "repro", "-f", cwd=pipeline_project))) == 6
    assert (pipeline_project / "dvc.lock").read_bytes() == before


def test_benchmark_compares_methods(pipeline_project):
    benchmark = [sys.executable, "-m", "benchmarks.methods", "--seeds", "1", "--epochs", "1"]
    table = run(*benchmark, "--methods", "nfgsm", "trades", cwd=pipeline_project).splitlines()
    rows = [line.split("|")[1].strip() for line in table if line.startswith("| ")]
    assert rows == ["method", "clean", "nfgsm", "trades"]


@pytest.mark.parametrize("table", ["data/label_fixes.csv", "data/few/exclude.csv"])
def test_edited_table_reruns_preprocess(pipeline_project, table):
    file = pipeline_project / table
    before = file.read_bytes() if file.exists() else None
    with file.open("a") as stream:
        stream.write("Type_1/0.jpg,Type_2\n")
    assert table.removesuffix("/exclude.csv") in run(
        "dvc", "status", "preprocess", cwd=pipeline_project
    )
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    assert "up to date" in run("dvc", "status", "preprocess", cwd=pipeline_project)


def test_experiment_with_another_eps_keeps_the_clean_model(pipeline_project):
    run("git", "add", "-A", cwd=pipeline_project)
    run("git", "commit", "-qm", "Results", cwd=pipeline_project)
    output = run(
        "dvc", "exp", "run", "-n", "small-eps", "-S", "attack.eps=0.01", cwd=pipeline_project
    )
    assert executed_stages(output) == [
        "attack_eval@clean",
        "train_adv",
        "attack_eval@adv",
        "evaluate",
    ]
    changed = run("git", "diff", "-U0", "params.yaml", cwd=pipeline_project)
    assert sum(line.startswith("+ ") for line in changed.splitlines()) == 1, changed
    shown = run("dvc", "exp", "show", "--csv", cwd=pipeline_project)
    assert "small-eps" in shown
    diff = run("dvc", "plots", "diff", "HEAD", "small-eps", "-o", "out", cwd=pipeline_project)
    assert "index.html" in diff
    html = (pipeline_project / "out/index.html").read_text()
    for chart in (
        "Training curves, standard training",
        "Training curves, adversarial fine-tuning",
        "Robust accuracy: vs. ε, and under each attack at the largest ε",
        "Confusion matrix",
    ):
        assert json.dumps(chart) in html
    run("git", "checkout", "-q", ".", cwd=pipeline_project)
    run("git", "clean", "-qfd", cwd=pipeline_project)
    assert executed_stages(run("dvc", "repro", cwd=pipeline_project)) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "attack.eps",
            8,
            "attack.eps: expected a number from 0.0001 to 0.5 for norm linf, such as 8/255",
        ),
        ("train_adv.method", "pdg", "train_adv.method: expected 'fgsm', 'fgsm_rs', 'nfgsm'"),
        ("data.source", "data/nowhere", "data/nowhere"),
    ],
)
def test_invalid_value_stops_at_once_and_names_its_key(pipeline_project, key, value, message):
    file = pipeline_project / "params.yaml"
    before, lock = file.read_bytes(), (pipeline_project / "dvc.lock").read_bytes()
    set_params(file, **{key: value})
    output = run("dvc", "repro", cwd=pipeline_project, code=1)
    file.write_bytes(before)
    assert message in output
    assert "Traceback" not in output
    assert (pipeline_project / "dvc.lock").read_bytes() == lock
    assert executed_stages(run("dvc", "repro", cwd=pipeline_project)) == [], (
        "the results of before are kept"
    )
