"""What is known of an evaluated model: read from the results of one pipeline run only."""

import pytest
import yaml

from stages.core.errors import InputError
from stages.serving.evaluated_model import EvaluatedModel, read_evaluated_model
from tests.helpers.evaluated_models import EVALUATED


def test_evaluation_survives_json_round_trip():
    assert EvaluatedModel.from_json(EVALUATED.to_json()) == EVALUATED


@pytest.mark.usefixtures("finished_pipeline")
def test_evaluation_is_that_of_finished_pipeline():
    evaluated = read_evaluated_model("adv")
    assert (evaluated.crop, evaluated.synthetic) == ("none", False)
    assert (evaluated.norm, evaluated.eps, evaluated.images) == ("l2", 0.01, 7)
    assert (evaluated.confidence, evaluated.robust_accuracy_worst.value) == (0.9, 0.5)
    assert "L2, ε = 0.01" in evaluated.disclaimer()


def test_missing_results_are_refused(finished_pipeline):
    with pytest.raises(InputError, match=r"attack_eval@clean.*: expected the results"):
        read_evaluated_model("clean")
    (finished_pipeline / "metrics/data.json").unlink()
    with pytest.raises(InputError, match=r"metrics/data.json.*: expected the results"):
        read_evaluated_model("adv")


@pytest.mark.parametrize(
    "file", ["data/models/adv.safetensors", "metrics/evaluate.json", "metrics/data.json"]
)
def test_file_that_differs_from_dvc_lock_is_refused(finished_pipeline, file):
    with (finished_pipeline / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(InputError, match=f"{file}: expected the one that dvc.lock records"):
        read_evaluated_model("adv")


@pytest.mark.parametrize("path", ["data/processed", "data/predictions/adv"])
def test_stages_of_different_runs_are_refused(finished_pipeline, path):
    lock = finished_pipeline / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    for stage in content["stages"].values():
        for entry in stage["outs"]:
            if entry["path"] == path:
                entry["md5"] = "other"
    lock.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=f"{path}: expected the one that dvc.lock records"):
        read_evaluated_model("adv")
