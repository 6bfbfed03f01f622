"""A saved model, and the results of a pipeline around it."""

import pytest

from tests.helpers.evaluated_models import save_model, write_results


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "adv.safetensors"
    save_model(file)
    return file


@pytest.fixture
def finished_pipeline(tmp_path, monkeypatch):
    """The results of a pipeline in the current folder."""
    write_results(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
