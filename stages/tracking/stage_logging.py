"""What the stages log to MLflow: a child run for every stage that was executed, below one parent run of the whole pipeline.

What is logged is read from the files that dvc.yaml lists for the stage: nothing is named twice, and what could not be logged
(no server, no space) is logged later from the same files by ``python -m stages.tracking``. Of several processes of a stage the
first one calls this.

A rerun that wrote the same bytes changes nothing in MLflow, an interrupted stage resumes its run, and results that contradict a
run (other code, another machine) get a new one; the old one is marked ``superseded``.
"""

import atexit
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from stages.core.params_file import flatten, load_params
from stages.tracking import stage_outputs
from stages.tracking.connection import open_session
from stages.tracking.environment import environment_tags
from stages.tracking.mlflow_runs import MlflowSession

_failed = False  # then nothing is tried again


def _log_errors_only(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def logging_errors_only(stage: str, *args: Any) -> None:
        global _failed
        try:
            function(stage, *args)
        except (
            Exception
        ) as error:  # whatever fails between here and the server, hours of training are worth more
            if not _failed:
                text = "MLflow: %s is not logged (%s: %.300s); its files are: `python -m stages.tracking` logs them later"
                logging.getLogger(__name__).warning(
                    text, stage, type(error).__name__, str(error).partition("\n")[0]
                )
            _failed = True

    return logging_errors_only


@_log_errors_only
def log_epoch(stage: str, row: Mapping[str, Any]) -> None:
    """Log one epoch of a training under way: numbers by name, among them ``epoch``. Never raises."""
    if not _failed and load_params().runtime.tracking:
        session, metrics = current_session(), stage_outputs.epoch_metrics([row])
        with session.lock:  # SQLite gives up after 20 s of other writers; on a busy machine workers of a queue reach that
            session.log_new_metrics(session.find_or_start_run(stage, metrics), metrics)


@_log_errors_only
def log_stage(stage: str, params: Any) -> None:
    """Log what a stage has written, as its last act. Never raises.

    ``stage`` is its name in DVC, ``attack_eval@clean`` for an item of a matrix; ``params`` what ``load_stage_params`` gave it.
    """
    if load_params().runtime.tracking:
        session = current_session()
        with session.lock:
            session.log_stage(stage, flatten(params), environment_tags())


@functools.cache
def current_session() -> MlflowSession:
    """The one session of this process; what it has begun and not finished is shown as killed when the process ends."""
    session = open_session()

    @atexit.register
    def mark_unfinished_runs_killed() -> None:
        for stage in session.runs:
            _log_errors_only(session.mark_killed)(stage)

    return session
