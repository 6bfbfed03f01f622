"""Opening MLflow: a database in the main repository, or the server that MLFLOW_TRACKING_URI names.

Database and artifacts lie in the main repository (DVC_ROOT) also when DVC runs an experiment in a
temporary copy of it.
"""

import atexit
import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# MLflow reads this when it is imported; therefore our code imports it from here only.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that does not respond shall cost seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from stages.core.errors import InputError

EXPERIMENT = "colposcopy-robustness"
# The columns that `make ui` shows: MLflow's own table has no numbers until some are chosen.
ACCURACIES = ("clean_accuracy", "robust_accuracy_worst")
COLUMNS = [
    "params.`attack.eps`",
    *(f"metrics.`clean/{name}`" for name in ACCURACIES),
    *(f"metrics.`adv/{name}`" for name in ACCURACIES),
]
WIDTHS = dict.fromkeys(COLUMNS, 190)  # pixels
VIEW = {"selectedColumns": COLUMNS, "columnOrder": COLUMNS, "columnWidths": WIDTHS}
VIEW_KEY = "mlflow.sharedViewState.headlines"  # a tag; the address ends in "headlines"


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI or ``mlflow.db``; a relative path of SQLite starts at ``root``."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{(root / path).as_posix()}"


@contextmanager
def mlflow_errors_in_one_line() -> Iterator[None]:
    """What MLflow can't do is the user's to mend: no server, an older database, no driver for it.

    Raises:
        InputError: names the database or server, MLflow's reason and what to do.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, Timeout, ImportError) as error:
        reason = " ".join(str(error).split("\n[SQL")[0].split())
        raise InputError(
            f"MLflow: expected to read and write {mlflow.get_tracking_uri()}, got: {reason:.400} "
            "(docs/experiments.md, MLflow, says what to do)"
        ) from error


@functools.cache
def open_mlflow() -> FileLock:
    """Open MLflow's functions on our experiment: 2 to 3 s, or 10 s to create the database.

    Returns:
        The lock to be held while writing: SQLite itself gives up after 20 s of other writers.
    """
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
    uri = tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    # A server decides itself where artifacts lie.
    artifacts = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
    # Of stages that create the database at once, all but one would fail.
    with (lock := FileLock(root / ".mlflow.lock", timeout=300)):
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, artifacts)
        mlflow.set_experiment(EXPERIMENT)
        mlflow.set_experiment_tag(VIEW_KEY, json.dumps(VIEW))
    return lock


@atexit.register
def mark_runs_killed() -> None:
    """Show runs that this process leaves unfinished as killed; MLflow would show them finished."""
    with suppress(Exception):  # nothing can be done about a server that has gone
        while mlflow.active_run():
            mlflow.end_run("KILLED")
