"""A project that was evaluated once."""

from pathlib import Path

import pytest

from stages import evaluate
from stages.report.results import Results, load_results
from tests.helpers.reports import make_project


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> tuple[Path, Results]:
    """A folder in which the stage has run, and what it computed."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_project(n=240)
        kept = []
        patch.setattr(evaluate, "load_results", lambda p: kept.append(load_results(p)) or kept[0])
        evaluate.main()
    return folder, kept[0]


@pytest.fixture
def results(evaluated, monkeypatch) -> Results:
    """Those of a sound evaluation, whose folder is the current one. Tests must not change them."""
    monkeypatch.chdir(evaluated[0])
    return evaluated[1]
