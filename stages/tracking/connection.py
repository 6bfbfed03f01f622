"""Opening MLflow: the database in the main repository, or the server that MLFLOW_TRACKING_URI names.

The database and the artifacts lie in the main repository (DVC_ROOT), also when DVC runs an experiment in a temporary copy.
"""

import json
import logging
import os
from pathlib import Path

from filelock import FileLock

from stages.tracking.environment import code_tags
from stages.tracking.mlflow_runs import MlflowSession

EXPERIMENT = "colposcopy-robustness"
# What the README's link shows of each run: MLflow's own table has no numbers until columns are chosen.
COLUMNS = {
    "params.`attack.eps`": 100,  # pixels wide
    "metrics.`clean/clean_accuracy`": 190,
    "metrics.`clean/robust_accuracy_worst`": 190,
    "metrics.`adv/clean_accuracy`": 190,
    "metrics.`adv/robust_accuracy_worst`": 190,
}
VIEW_KEY = (
    "mlflow.sharedViewState.headlines"  # of the experiment's tag; "headlines" stands in the link
)
VIEW = json.dumps(
    {"selectedColumns": [*COLUMNS], "columnOrder": [*COLUMNS], "columnWidths": COLUMNS}
)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the main repository; a relative SQLite path counts from there too."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{(root / path).as_posix()}"


def open_session() -> MlflowSession:
    """Open MLflow: 2 to 3 s, or 10 s where the database isn't there yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
    )  # a server that is gone costs seconds, not minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for logger_name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(logger_name).setLevel(logging.WARNING)
    root = Path(os.environ.get("DVC_ROOT") or Path.cwd())
    uri = tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    # A server has a place of its own for artifacts; ours must not be the temporary folder of an experiment.
    artifact_root = (
        (root / "mlartifacts").resolve().as_uri()
        if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES
        else None
    )
    # Stages that start at once must create nothing twice: MLflow's own creation of a database fails in all of them but one.
    with (lock := FileLock(root / ".mlflow.lock", timeout=300)):
        if artifact_root:  # whoever creates the database also places MLflow's own experiment "Default", which is left alone
            SqlAlchemyStore(uri, artifact_root)
        client = mlflow.MlflowClient(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            known.experiment_id
            if known
            else client.create_experiment(EXPERIMENT, artifact_location=artifact_root)
        )
        if known is None or known.tags.get(VIEW_KEY) != VIEW:
            client.set_experiment_tag(experiment, VIEW_KEY, VIEW)
    return MlflowSession(client, experiment, lock, code_tags())
