"""The real dvc.yaml in a clone, on a few pictures with few steps: from the first repro to an experiment."""

import json

import pytest
import yaml

from tests.helpers.projects import executed, run, set_params

pytestmark = pytest.mark.slow


def test_every_declared_file_and_no_other_is_written(clone):
    outs = set()
    lock = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    for stage in lock.values():
        outs |= {out["path"] for out in stage["outs"]}
    assert all((clone / out).exists() for out in outs)
    new = run("git", "ls-files", "-o", "--exclude-standard", cwd=clone).splitlines()
    new += run("git", "ls-files", "-m", cwd=clone).splitlines()
    kept_in_git = {out for out in outs if out.startswith(("metrics/", "plots/"))}
    assert set(new) - {"dvc.lock"} <= kept_in_git
    written = {p.relative_to(clone).as_posix() for d in ("metrics", "plots") for p in (clone / d).iterdir()}
    assert written == kept_in_git


def test_contract_of_the_metrics(clone):
    metrics = json.loads((clone / "metrics/evaluate.json").read_text())
    for model in ("clean", "adv"):
        part = metrics[model]
        assert 0 <= part["robust_accuracy_worst"] <= part["clean_accuracy"] <= 1
        assert set(part["robust_accuracy"]) >= {"uniform_noise", "gaussian_noise", "fgsm", "bim", "pgd"}
        assert part["clean_accuracy_low"] <= part["clean_accuracy"] <= part["clean_accuracy_high"]
    data = json.loads((clone / "metrics/data.json").read_text())
    assert data["rejected"]["total"] == 1
    assert "NaN" not in json.dumps(metrics)


def test_a_second_repro_has_nothing_to_do_and_a_forced_one_changes_no_byte(clone):
    assert not executed(run("dvc", "repro", cwd=clone))
    before = (clone / "dvc.lock").read_bytes()
    assert len(executed(run("dvc", "repro", "-f", cwd=clone))) == 6
    assert (clone / "dvc.lock").read_bytes() == before


@pytest.mark.parametrize("table", ["data/label_fixes.csv", "data/few/exclude.csv"])
def test_an_edited_table_reruns_preprocess(clone, table):
    file = clone / table
    before = file.read_bytes() if file.exists() else None
    with file.open("a") as stream:
        stream.write("Type_1/0.jpg,Type_2\n")
    assert table.removesuffix("/exclude.csv") in run("dvc", "status", "preprocess", cwd=clone)
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    assert "up to date" in run("dvc", "status", "preprocess", cwd=clone)


def test_an_experiment_with_another_eps_keeps_the_clean_model(clone):
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "Results", cwd=clone)
    output = run("dvc", "exp", "run", "-n", "small-eps", "-S", "attack.eps=0.01", cwd=clone)
    assert executed(output) == ["attack_eval@clean", "train_adv", "attack_eval@adv", "evaluate"]
    changed = run("git", "diff", "-U0", "params.yaml", cwd=clone)
    assert sum(line.startswith("+ ") for line in changed.splitlines()) == 1, changed
    shown = run("dvc", "exp", "show", "--csv", cwd=clone)
    assert "small-eps" in shown
    diff = run("dvc", "plots", "diff", "HEAD", "small-eps", "-o", "out", cwd=clone)
    assert "index.html" in diff
    html = (clone / "out/index.html").read_text()
    for chart in ("Clean training", "Adversarial training", "Accuracy under attack", "What is taken for what"):
        assert chart in html
    run("git", "checkout", "-q", ".", cwd=clone)
    run("git", "clean", "-qfd", cwd=clone)
    assert executed(run("dvc", "repro", cwd=clone)) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack.eps", 8, "attack.eps: expected a number in (0, 0.5] (pixel units: write 8/255, not 8), got 8"),
        ("attack.eps", "eight", "attack.eps: expected a number or a fraction such as 8/255, got 'eight'"),
        ("train_adv.method", "pdg", "train_adv.method: expected one of"),
        ("model.arch", "resnet51", "model.arch: expected one of"),
        ("data.source", "data/nowhere", "data/nowhere"),
    ],
)
def test_a_wrong_value_stops_at_once_with_its_key(clone, key, value, message):
    file = clone / "params.yaml"
    before, lock = file.read_bytes(), (clone / "dvc.lock").read_bytes()
    set_params(file, **{key: value})
    output = run("dvc", "repro", cwd=clone, code=1)
    file.write_bytes(before)
    assert message in output
    assert "Traceback" not in output
    assert (clone / "dvc.lock").read_bytes() == lock
    assert executed(run("dvc", "repro", cwd=clone)) == [], "earlier results are still there"
