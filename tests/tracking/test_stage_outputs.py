"""What is read from dvc.yaml and from the files that stages have written."""

from pathlib import Path

import pytest

from stages.core.files import md5
from stages.tracking.stage_outputs import (
    digest_files,
    dvc_entries,
    epoch_metrics,
    output_files,
    read_metrics,
    stage_names,
)
from tests.helpers.tracked_pipeline import STAGES, write_pipeline_files, write_text


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    write_pipeline_files(tmp_path, "project")
    monkeypatch.chdir(tmp_path)


def test_stage_names_expand_matrix_and_follow_dependencies():
    names = stage_names()
    assert sorted(names) == sorted(STAGES)
    for producer, consumer in (
        ("preprocess", "train_clean"),
        ("train_adv", "attack_eval@adv"),
        ("attack_eval@clean", "evaluate"),
    ):
        assert names.index(producer) < names.index(consumer)


def test_entries_of_matrix_stage_have_item_filled_in():
    assert dvc_entries("attack_eval@adv", "deps", "outs") == [
        "data/processed",
        "data/models/adv.safetensors",
        "data/predictions/adv",
    ]
    assert dvc_entries("preprocess", "metrics") == ["metrics/data.json"], "without its options"


def test_unknown_stage_is_refused():
    with pytest.raises(
        ValueError, match=r"dvc\.yaml: expected one of the stages preprocess, .*, got 'train'"
    ):
        dvc_entries("train", "outs")


def test_output_files_include_tables_and_images_of_folders():
    files = output_files("attack_eval@adv")
    expected = [
        Path("data/predictions/adv/examples/0.png"),
        Path("data/predictions/adv/predictions.csv"),
    ]
    assert files == {file: md5(file) for file in expected}


def test_digest_changes_with_content_and_name():
    first = {Path("a"): "1", Path("b"): "2"}
    assert digest_files(first) == digest_files(dict(first))
    assert (
        len(
            {
                digest_files(files)
                for files in (first, {Path("a"): "1", Path("b"): "3"}, {Path("a"): "1"})
            }
        )
        == 3
    )


def test_epoch_metrics_skip_empty_cells():
    rows = [{"epoch": "2", "val_loss": "0.5", "val_robust_loss": "", "chosen": "1"}]
    assert epoch_metrics(rows) == {("epoch/val_loss", 2): 0.5}


def test_metric_names_of_json_are_those_of_dvc():
    write_text(
        "metrics/data.json",
        '{"images": 2, "train": {"CIN2+": 1, "x": {"y": 3}}, "synthetic": true, "source": "a"}',
    )
    assert read_metrics(Path("metrics/data.json")) == {
        ("data/images", 0): 2,
        ("data/train.CIN2_", 0): 1,  # MLflow refuses the plus
        ("data/train.x.y", 0): 3,
    }


def test_metrics_of_evaluate_have_no_prefix():
    write_text("metrics/evaluate.json", '{"adv": {"clean_accuracy": 0.5}, "n": 2}')
    assert read_metrics(Path("metrics/evaluate.json")) == {
        ("adv/clean_accuracy", 0): 0.5,
        ("n", 0): 2,
    }


def test_files_without_metrics_give_none():
    assert read_metrics(Path("plots/crops.png")) == {}


def test_predictions_on_validation_images_give_no_metrics():
    table = "attack,eps,label,prediction\nnone,0,a,a\n"
    for name, metrics in (("predictions", {("clean_accuracy", 0): 1.0}), ("calibration", {})):
        write_text(f"data/predictions/adv/{name}.csv", table)
        assert read_metrics(Path(f"data/predictions/adv/{name}.csv")) == metrics


def test_transfer_attacks_give_a_metric_for_each_target():
    table = "attack,eps,label,prediction,target\ntransfer,0.01,a,a,adv\ntransfer,0.01,a,b,clean\n"
    write_text("data/predictions/adv/transfer.csv", table)
    metrics = read_metrics(Path("data/predictions/adv/transfer.csv"))
    assert {name.partition(".")[0]: value for (name, _), value in metrics.items()} == {
        "robust_accuracy/transfer_to_adv": 1.0,
        "robust_accuracy/transfer_to_clean": 0.0,
    }
