"""What is read from dvc.yaml and from the files that stages have written."""

from pathlib import Path

import pytest

from stages.tracking.stage_outputs import (
    content_digest,
    entries,
    output_files,
    read_metrics,
    stage_names,
)
from tests.helpers.tracked_pipeline import STAGES, write_pipeline_files, write_text


@pytest.fixture(autouse=True)
def _in_project(tmp_path, monkeypatch):
    write_pipeline_files(tmp_path, "project")
    monkeypatch.chdir(tmp_path)


def test_matrix_is_expanded():
    assert tuple(stage_names()) == STAGES
    assert entries("attack_eval@adv", "outs", "params") == ["data/predictions/adv", "attack"]


def test_output_files_include_tables_and_images_of_folders():
    folder = Path("data/predictions/adv")
    assert output_files("attack_eval@adv") == [
        folder / "examples/0.png",
        folder / "predictions.csv",
    ]


def test_digest_is_that_of_contents_and_names():
    file = Path("data/predictions/adv/predictions.csv")
    digests = [content_digest("attack_eval@adv")]
    file.touch()
    assert content_digest("attack_eval@adv") == digests[0]
    write_text(file, "changed")
    digests.append(content_digest("attack_eval@adv"))
    file.rename(file.with_name("other.csv"))
    digests.append(content_digest("attack_eval@adv"))
    assert len({*digests}) == 3


@pytest.mark.parametrize(
    ("name", "text", "metrics"),
    [
        (
            "metrics/data.json",
            '{"images": 2, "train": {"<2": 1, ">2": 4, "x": {"y": 3}}, "source": "a"}',
            {
                "data/images": 2,
                "data/train. less-than sign 2": 1,
                "data/train. greater-than sign 2": 4,
                "data/train.x.y": 3,
            },
        ),
        (
            "data/predictions/adv/transfer.csv",
            "attack,norm,eps,label,prediction,target\n"
            "pgd,linf,0.0313725,NA,NA,adv\npgd,linf,0.0313725,NA,1,clean\n",
            {
                "robust_accuracy/pgd_to_adv.eps_8_255": 1,
                "robust_accuracy/pgd_to_clean.eps_8_255": 0,
            },
        ),
    ],
)
def test_names_of_metrics(name, text, metrics):
    write_text(name, text)
    assert read_metrics(Path(name)) == {0: metrics}


def test_accuracy_under_attack_is_named_by_norm_and_eps():
    file = Path("data/predictions/adv/predictions.csv")
    assert read_metrics(file)[0] == {
        "clean_accuracy": 0.5,
        "robust_accuracy/pgd.eps_8_255": 0,
        "robust_accuracy/pgd.eps_0.25_255": 1,
        "robust_accuracy/pgd.l2_eps_0.5": 1,
    }
    write_text(file, file.read_text().replace(",norm,", ",other,"))
    with pytest.raises(KeyError, match="norm"):
        read_metrics(file)


def test_figures_and_predictions_on_validation_images_are_no_metrics():
    Path("data/predictions/adv/predictions.csv").rename("calibration.csv")
    assert read_metrics(Path("calibration.csv")) == {}
    assert read_metrics(Path("plots/crops.png")) == {}
