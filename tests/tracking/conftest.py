"""Projects with a database of their own; creating one takes MLflow 10 s, so all are copies of one."""

import pytest

from tests.helpers.tracked_pipeline import RACE, start_script, tracked_project, write_pipeline_files


@pytest.fixture(scope="session")
def new_database(tmp_path_factory):
    """Its folder, and what two stages wrote to stderr that started at once, in a temporary copy, and both created it."""
    folder, copy = tmp_path_factory.mktemp("new_database"), tmp_path_factory.mktemp("copy")
    write_pipeline_files(copy, "new_database")
    env, body = (
        {"DVC_EXP_NAME": RACE, "DVC_ROOT": str(folder)},
        "stage_logging.log_stage('{}', load_stage_params(Seeded))",
    )
    processes = [
        start_script(copy, body.format(stage), **env) for stage in ("preprocess", "train_clean")
    ]
    return folder, [process.communicate(timeout=300)[1] for process in processes]


@pytest.fixture
def project(new_database, tmp_path):
    """A project whose pipeline has run, as the current folder."""
    with tracked_project(tmp_path, new_database[0] / "mlflow.db"):
        yield tmp_path
