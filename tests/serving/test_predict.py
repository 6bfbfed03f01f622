"""The command ``python -m stages.predict``."""

import pytest

from stages import predict
from stages.core.errors import InputError
from tests.helpers.serving_requests import image_file


@pytest.fixture
def folder(finished_pipeline):
    """An image in a subfolder, and a text file."""
    (finished_pipeline / "in/deep").mkdir(parents=True)
    (finished_pipeline / "in/deep/1.JPG").write_bytes(image_file())
    (finished_pipeline / "in/notes.txt").write_text("text")
    return finished_pipeline / "in"


def test_every_image_of_folder_is_predicted(folder, capsys):
    assert [file.name for file in predict.main("adv", [folder])] == ["1.JPG"]
    assert "Not a medical device" in capsys.readouterr().out


def test_invalid_image_is_error_after_predictions_of_others(folder, capsys):
    (folder / "2.png").write_bytes(b"invalid")
    with pytest.raises(InputError, match=r"2.png: expected an image, got: not an image"):
        predict.main("adv", [folder])
    assert "1.JPG" in capsys.readouterr().out


def test_missing_file_is_error_after_predictions_of_others(folder, capsys):
    with pytest.raises(InputError, match=r"missing\.png: expected an image, got: .*No such file"):
        predict.main("adv", [folder / "missing.png", folder])
    assert "1.JPG" in capsys.readouterr().out


def test_folder_without_images_is_refused(finished_pipeline):
    with pytest.raises(InputError, match="expected files ending in"):
        predict.main("adv", [finished_pipeline / "metrics"])
