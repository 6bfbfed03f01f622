"""What a stage calls to be logged in MLflow; whatever fails there is a warning and costs no result.

What is logged is read from the files of the stage, so that ``python -m stages.tracking`` can do it
later. Of several processes of a stage, the first one calls this.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.core.params_file import flatten, load_params
from stages.tracking.environment import environment_tags

_failed = False  # then no further epoch is tried, and nothing more is said


def log_epoch(stage: str, row: Mapping[str, Any]) -> None:
    """Log an epoch of a training under way: numbers by name, with ``epoch``. Never raises."""
    with _errors_are_a_warning(stage):
        if not _failed and load_params().runtime.tracking:
            from stages.tracking import mlflow_runs

            mlflow_runs.log_epoch(stage, row)


def log_stage(stage: str, params: Any) -> None:
    """Log what a stage has written, as its last act. Never raises.

    Args:
        stage: its name in DVC, ``attack_eval@clean`` for an item of a matrix.
        params: what ``load_stage_params`` gave it.
    """
    with _errors_are_a_warning(stage):
        if load_params().runtime.tracking:
            from stages.tracking import mlflow_runs

            mlflow_runs.log_stage(stage, flatten(params), environment_tags())


@contextmanager
def _errors_are_a_warning(stage: str) -> Iterator[None]:
    global _failed
    try:
        yield
    except Exception as error:  # whatever it is: hours of training are worth more than a log
        if not _failed:
            logging.getLogger(__name__).warning(
                "MLflow: %s is not logged (%s: %.300s); its files are: "
                "`python -m stages.tracking` logs them later",
                *(stage, type(error).__name__, str(error).partition("\n")[0]),
            )
        _failed = True
