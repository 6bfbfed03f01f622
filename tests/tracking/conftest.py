"""Projects with a database of their own: copies of one, as creating one takes MLflow 10 s."""

from pathlib import Path

import pytest

from tests.helpers.tracked_pipeline import RACE, start_script, tracked_project, write_pipeline_files
from tests.helpers.workers import made_once


@pytest.fixture(scope="session")
def new_database(tmp_path_factory):
    """The folder of a database, and the stderr of two stages that started at once without one.

    They ran in a temporary copy of that folder.
    """
    folder = made_once(tmp_path_factory, "new_database", log_two_stages_at_once)
    return folder, (folder / "stderr").read_text()


def log_two_stages_at_once(folder: Path) -> None:
    copy = folder / "copy"
    copy.mkdir(parents=True)
    write_pipeline_files(copy, "new_database")
    env = {"DVC_EXP_NAME": RACE, "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": ""}
    processes = [
        start_script(copy, f"log_stage('{stage}')", **env) for stage in ("preprocess", "train_adv")
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    (folder / "stderr").write_text("".join(errors))


@pytest.fixture
def project(new_database, tmp_path):
    """A project whose pipeline has run, as the current folder."""
    with tracked_project(tmp_path, new_database[0] / "mlflow.db"):
        yield tmp_path
