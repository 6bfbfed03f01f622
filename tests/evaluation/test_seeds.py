"""Mean and range over seeds, from what DVC shows of its experiments."""

import io
import json

import pytest
from stages.evaluation import seeds

from stages.core.errors import InputError


def entry(seed, clean, robust, eps=0.03, *, metrics=True, runtime="cpu"):
    models = {
        "clean": {
            "clean_accuracy": clean,
            "clean_accuracy_low": clean - 0.1,
            "clean_accuracy_high": clean + 0.1,
        },
        "adv": {"robust_accuracy_worst": robust},
        "difference": {
            "clean_accuracy": -clean / 10,
            "clean_accuracy_low": -0.2,
            "clean_accuracy_high": 0.1,
        },
    }
    params = {"seed": seed, "attack": {"eps": eps}, "runtime": {"device": runtime}}
    data = {"params": {"params.yaml": {"data": params}}}
    return {
        "data": data | ({"metrics": {"metrics/evaluate.json": {"data": models}}} if metrics else {})
    }


def shown(*experiments):
    """A commit with seed 0, and experiments on it."""
    return [
        entry(0, 0.8, 0.5) | {"experiments": [{"revs": [experiment]} for experiment in experiments]}
    ]


def test_runs_that_differ_in_the_seed_alone_are_summarized():
    commits = shown(
        entry(1, 0.9, 0.4, runtime="cuda"), entry(2, 0.7, 0.6), entry(1, 0.1, 0.1, eps=0.01)
    )
    table = seeds.seed_table(seeds.finished_runs(commits)).set_index(["model", "metric"])
    row = table.loc[("clean", "clean_accuracy")]
    assert (row["seeds"], row["mean"], row["least"], row["most"]) == (
        "0 1 2",
        pytest.approx(0.8),
        0.7,
        0.9,
    )
    assert (row["low"], row["high"]) == pytest.approx((0.7, 0.9)), (
        "the interval is that of the first seed"
    )
    row = table.loc[("adv", "robust_accuracy_worst")]
    assert (row["mean"], row["least"], row["most"]) == (pytest.approx(0.5), 0.4, 0.6)


def test_experiment_seen_twice_counts_once_and_unfinished_ones_do_not_count():
    commits = shown(
        entry(0, 0.8, 0.5), entry(1, 0.6, 0.5), entry(2, 0.0, 0.0, metrics=False), {"data": None}
    )
    table = seeds.seed_table(seeds.finished_runs(commits))
    assert set(table["seeds"]) == {"0 1"}


def test_text_and_csv(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(shown(entry(1, 0.9, 0.4)))))
    table = seeds.main(tmp_path / "seeds.csv")
    text = capsys.readouterr().out.replace("\xa0", " ")
    assert (
        text.splitlines()[0]
        == "Seeds 0, 1: mean (least–most); in brackets the confidence interval of seed 0"
    )
    assert "Standard training, Clean accuracy" in text
    assert "85.0% (80.0%–90.0%) [70.0, 90.0]" in text
    assert "-8.5 pp (-9.0 pp–-8.0 pp) [-20.0, +10.0]" in text
    lines = (tmp_path / "seeds.csv").read_text().splitlines()
    assert lines[0] == ",".join(seeds.COLUMNS)
    assert len(lines) == 1 + len(table)


@pytest.mark.parametrize("text", [json.dumps(shown()), "", "no JSON"])
def test_nothing_to_summarize_is_an_error(text, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(InputError, match="standard input: expected"):
        seeds.main(None)
