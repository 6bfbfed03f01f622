"""Mean and range over seeds, from what DVC shows of its experiments."""

import io
import json

import pytest

from stages.core.errors import InputError
from tools import seeds

EVALUATIONS = {}  # by revision


@pytest.fixture(autouse=True)
def _commits(monkeypatch):
    monkeypatch.setattr(seeds, "read_evaluation", EVALUATIONS.__getitem__)


def run(seed, clean, *, eps=0.03, device="cpu", **further):
    """An entry of ``dvc exp show --json``; clean: accuracy, None: not finished."""
    interval = {"clean_accuracy_low": clean and clean - 0.1, "clean_accuracy_high": 0.95}
    metrics = {
        "clean": {"clean_accuracy": clean, **interval},
        "adv": {"robust_accuracy_worst": 0.5, **further},
        "difference": {"clean_accuracy": clean and -clean / 10},
    }
    params = {"seed": seed, "attack": {"eps": eps}, "runtime": {"device": device}}
    data = {"params": {"params.yaml": {"data": params}}}
    rev = str(len(EVALUATIONS))
    EVALUATIONS[rev] = metrics
    if clean is not None:
        data["metrics"] = {"metrics/headlines.json": {"data": {"clean": {}}}}
    return {"rev": rev, "data": data}


def commit(rev, first, *experiments):
    EVALUATIONS[rev] = EVALUATIONS[first["rev"]]
    return first | {"rev": rev, "experiments": [{"revs": [entry]} for entry in experiments]}


def table_of(*commits):
    return seeds.seed_table(seeds.read_runs(commits)).set_index(["commit", "model", "metric"])


def test_runs_that_differ_in_the_seed_alone_are_summarized():
    others = [run(1, 0.9, device="cuda"), run(2, 0.7), run(1, 0.1, eps=0.01), run(3, None)]
    table = table_of(commit("new", run(0, 0.8), *others, {"data": None}))
    row = table.loc["new", "clean", "clean_accuracy"]
    assert row["seeds"] == "0 1 2"
    assert tuple(row[["mean", "least", "most"]]) == pytest.approx((0.8, 0.7, 0.9))
    assert tuple(row[["first_seed", "low", "high"]]) == pytest.approx((0, 0.7, 0.95))
    assert table.loc["new", "difference", "clean_accuracy"]["mean"] == pytest.approx(-0.08)


def test_runs_of_different_commits_are_neither_pooled_nor_overwritten():
    workspace = run(0, 0.2) | {"rev": "workspace"}
    new = commit("new", run(0, 0.8), run(0, 0.8), run(1, 0.6))
    old = commit("old", run(0, 0.1), run(1, 0.1), run(2, 0.1))
    table = table_of(workspace, new, old)
    means = table.xs("clean_accuracy", level="metric").xs("clean", level="model")["mean"]
    assert means.to_dict() == pytest.approx({"new": 0.7, "old": 0.1})
    assert table.loc["new"]["seeds"].unique().tolist() == ["0 1"]
    assert table["runs"].groupby("commit").first().to_dict() == {"new": 1, "old": 2}


def test_metric_that_a_run_lacks_is_left_out():
    table = table_of(commit("new", run(0, 0.8, log_loss=1.0), run(1, 0.6)))
    assert ("new", "adv", "log_loss") not in table.index
    assert ("new", "adv", "robust_accuracy_worst") in table.index


def test_text_and_csv(monkeypatch, capsys, tmp_path):
    shown = json.dumps([commit("0123456789", run(0, 0.8), run(1, 0.9))])
    monkeypatch.setattr("sys.stdin", io.StringIO(shown))
    table = seeds.main(tmp_path / "seeds.csv")
    text = capsys.readouterr().out.replace("\xa0", " ")
    assert "Seeds 0, 1 of 0123456: mean (least–most); in brackets the" in text
    assert "85.0% (80.0%–90.0%) [70.0, 95.0]" in text
    assert "−8.5 pp (−9.0 pp–−8.0 pp)\n" in text
    lines = (tmp_path / "seeds.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == (",".join(seeds.COLUMNS), 1 + len(table))


@pytest.mark.parametrize("text", [json.dumps([commit("new", run(0, 0.8))]), "[]", "", "no JSON"])
def test_nothing_to_summarize_is_an_error(text, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(InputError, match="standard input: expected"):
        seeds.main(None)
