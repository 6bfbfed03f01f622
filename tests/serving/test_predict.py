"""The command ``python -m stages.predict``."""

import os

import pytest

from stages import predict
from stages.core.errors import InputError
from stages.photographs.reading import MAX_BYTES
from stages.photographs.source_files import SUFFIXES
from stages.serving.predictor import BATCH, ImagePredictor
from tests.helpers.serving_requests import image_file


@pytest.fixture
def folder(finished_pipeline):
    """An image in a subfolder, and a text file."""
    (finished_pipeline / "in/deep").mkdir(parents=True)
    (finished_pipeline / "in/deep/1.JPG").write_bytes(image_file())
    (finished_pipeline / "in/notes.txt").write_text("text")
    return finished_pipeline / "in"


def predicted_files(capsys) -> list[str]:
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    return [line[0].rpartition("/")[2] for line in lines if len(line) == 3]


def test_every_image_of_folder_is_predicted(folder, capsys):
    predict.main("adv", [folder])
    line, notice = capsys.readouterr().out.splitlines()
    file, name, probabilities = line.split("\t")
    assert file.endswith("deep/1.JPG")
    chances = dict(part.split() for part in probabilities.split(", "))
    assert max(chances, key=lambda name: float(chances[name])) == name
    assert sum(map(float, chances.values())) == pytest.approx(1, abs=0.002)
    assert "Not a medical device" in notice


def test_every_file_of_a_folder_is_an_image_or_named_as_another(tmp_path):
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "folder.png").mkdir()
    others = {".thumbnails/a.jpg", "._a.jpg", "notes.txt", "no_suffix", "pipe.jpg"}
    for name in others - {"pipe.jpg"}:
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    images = [tmp_path / f"a{suffix}" for suffix in SUFFIXES]
    for image in images:
        image.touch()
    found, left_out = predict.image_files(tmp_path)
    assert sorted(found) == sorted(images)
    assert {name for names in left_out.values() for name in names} == others


def test_files_that_are_not_predicted_are_counted(folder, capsys):
    for number in range(predict.NAMED):
        (folder / f"{number}.txt").touch()
    predict.main("adv", [folder])
    message = capsys.readouterr().err
    assert f"{predict.NAMED + 1} documents (0.txt, 1.txt" in message
    assert message.endswith("...)\n")


def test_images_are_predicted_in_batches(folder, capsys, monkeypatch):
    sizes = []

    def predict_proba(self, pixels):
        sizes.append(len(pixels))
        return original(self, pixels)

    original = ImagePredictor.predict_proba
    monkeypatch.setattr(ImagePredictor, "predict_proba", predict_proba)
    files = [folder / f"{number}.jpg" for number in range(BATCH + 3)]
    for file in files:
        file.write_bytes(image_file())
    predict.main("adv", files)
    assert sizes == [BATCH, 3]
    assert predicted_files(capsys) == [file.name for file in files]


def make_invalid(file, kind):
    if kind == "invalid":
        file.write_bytes(b"invalid")
    elif kind == "too large":
        with file.open("wb") as stream:
            stream.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("invalid", "not an image"), ("missing", ".*No such file"), ("too large", "too large")],
)
def test_invalid_file_is_error_after_predictions_of_others(folder, capsys, kind, reason):
    make_invalid(folder / "0.png", kind)
    with pytest.raises(InputError, match=rf"0\.png: expected an image, got: {reason}"):
        predict.main("adv", [folder / "0.png", folder / "deep"])
    assert predicted_files(capsys) == ["1.JPG"]


def test_folder_without_images_is_refused(finished_pipeline):
    with pytest.raises(InputError, match="expected images"):
        predict.main("adv", [finished_pipeline / "metrics"])
