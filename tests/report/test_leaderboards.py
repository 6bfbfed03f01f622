"""The files for RobustBench and the Hub have these formats, and the numbers of the run."""

import json

import pytest
import yaml

from stages.core.paths import MODELS
from stages.report import leaderboards

# Of github.com/RobustBench/robustbench, model_info/cifar10/Linf/*.json.
ROBUSTBENCH = {
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue"),
    *("architecture", "eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable"),
}


@pytest.mark.parametrize("model", MODELS)
def test_robustbench_has_its_keys_percentages_as_texts_and_no_autoattack(model, evaluated, results):
    file = evaluated[0] / "data/leaderboards" / model / "robustbench.json"
    content, values = json.loads(file.read_text()), results.metrics[model]
    assert content.keys() == ROBUSTBENCH
    assert content["clean_acc"] == f"{100 * values['clean_accuracy']:.2f}"
    assert content["reported"] == f"{100 * values['robust_accuracy_worst']:.2f}"
    assert content["autoattack_acc"] is None
    assert (content["eps"], content["additional_data"]) == ("8/255", False)
    assert isinstance(content["unreliable"], bool)


@pytest.mark.parametrize("model", MODELS)
def test_eval_results_and_model_index_hold_the_same_records(model, evaluated, results):
    folder = evaluated[0] / "data"
    file = folder / "leaderboards" / model / ".eval_results/robustness.yaml"
    entries = yaml.safe_load(file.read_text())
    assert all(entry.keys() == {"dataset", "value", "notes"} for entry in entries)
    assert all(entry["dataset"].keys() == {"id", "task_id"} for entry in entries)
    values = {entry["dataset"]["task_id"]: entry["value"] for entry in entries}
    assert values.items() <= results.metrics[model].items()
    index = yaml.safe_load((folder / "model_card.md").read_text().split("---\n")[1])["model-index"]
    (found,) = (entry["results"][0]["metrics"] for entry in index if entry["name"] == model)
    assert [metric["value"] for metric in found] == list(values.values())
    assert "upper bound" in entries[1]["notes"]


def test_a_failed_diagnostic_makes_a_result_unreliable(results, monkeypatch):
    for failed, expected in (([], False), (["adv D9"], True), (["clean D9"], False)):
        monkeypatch.setattr(leaderboards, "failed_checks", lambda _, failed=failed: failed)
        assert leaderboards.robustbench(results, "adv")["unreliable"] == expected
