"""The archive of the committed run's predictions."""

import json
import zipfile
from pathlib import Path

import pytest
import yaml

from stages.core.errors import InputError
from stages.core.paths import METRICS, PREDICTIONS
from tests.helpers.repository import ROOT
from tools import predictions
from tools.check import LOCK, digest


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run on synthetic images."""
    monkeypatch.chdir(tmp_path)
    for folder in (METRICS, PREDICTIONS / "clean", predictions.ARCHIVE.parent):
        folder.mkdir(parents=True)
    (METRICS / "data.json").write_text('{"synthetic": true}')
    (PREDICTIONS / "clean" / "predictions.csv").write_text("path\n")
    dep = {"path": "data/predictions/clean", "md5": digest(PREDICTIONS / "clean")}
    LOCK.write_text(yaml.safe_dump({"stages": {"evaluate": {"deps": [dep]}}}))


def test_archive_of_the_repository_is_of_its_run(tmp_path):
    with zipfile.ZipFile(ROOT / predictions.ARCHIVE) as archive:
        archive.extractall(tmp_path)
    expected = {}
    for dep in yaml.safe_load((ROOT / LOCK).read_text())["stages"]["evaluate"]["deps"]:
        if Path(dep["path"]).parent == PREDICTIONS:
            expected[dep["path"]] = dep["md5"]
    assert set(expected) == {"data/predictions/clean", "data/predictions/adv"}
    assert {path: digest(tmp_path / path) for path in expected} == expected, "make tables"


def test_same_files_make_the_same_bytes(run):
    predictions.main()
    first = predictions.ARCHIVE.read_bytes()
    predictions.main()
    assert predictions.ARCHIVE.read_bytes() == first
    with zipfile.ZipFile(predictions.ARCHIVE) as archive:
        assert archive.read("data/predictions/clean/predictions.csv") == b"path\n"


def test_predictions_of_another_run_are_refused(run):
    (PREDICTIONS / "clean" / "predictions.csv").write_text("other\n")
    with pytest.raises(InputError, match=r"clean: expected the folder of dvc\.lock"):
        predictions.main()


def test_predictions_of_photographs_are_refused(run):
    (METRICS / "data.json").write_text(json.dumps({"images": 3}))
    with pytest.raises(InputError, match="expected those of synthetic images"):
        predictions.main()
    assert not predictions.ARCHIVE.exists()
