"""What the stages tell MLflow: one run for every stage that was executed, below one parent run for the whole pipeline.

What is logged is read from the files that dvc.yaml lists for the stage: nothing is named twice, and what could not be logged
(no server, no space) is logged later from the same files by ``python -m stages.tracking``.

A rerun that wrote the same bytes changes nothing in MLflow, a stage that was killed goes on in the run that it had begun, and
results that contradict a run (other code, another machine) get a run of their own; the old one is marked ``superseded``.
"""

import atexit
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from stages.core.params import flatten, load_all
from stages.tracking import stage_outputs
from stages.tracking.environment import environment_tags
from stages.tracking.mlflow_runs import MlflowSession, open_session

_failed = False  # told once


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def guarded(stage: str, *args: Any) -> None:
        global _failed
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return  # one of several training processes speaks for all
        try:
            function(stage, *args)
        except Exception as error:  # whatever fails between here and the server, hours of training are worth more
            if not _failed:
                text = "MLflow: %s is not logged (%s: %.300s); its files are: `python -m stages.tracking` logs them later"
                logging.getLogger(__name__).warning(text, stage, type(error).__name__, str(error).partition("\n")[0])
            _failed = True

    return guarded


@_guarded
def log_epoch(stage: str, row: Mapping[str, Any]) -> None:
    """Log one epoch of a training under way: numbers by name, among them ``epoch``. Never raises."""
    if not _failed and load_all().runtime.tracking:
        session, scores = current_session(), stage_outputs.epoch_scores([row])
        with session.lock:  # SQLite gives up after 20 s of other writers; on a busy machine workers of a queue reach that
            session.add(session.run_for(stage, scores), scores)


@_guarded
def log_stage(stage: str, params: Any) -> None:
    """Log what a stage has written, as its last act. Never raises.

    ``stage`` is its name in DVC, ``attack_eval@clean`` for an item of a matrix; ``params`` what ``load_params`` gave it.
    """
    if load_all().runtime.tracking:
        session = current_session()
        with session.lock:
            session.log_stage(stage, flatten(params), environment_tags())


@functools.cache
def current_session() -> MlflowSession:
    """The one session of this process; what it has begun and not finished is shown as killed when the process ends."""
    session = open_session()

    @atexit.register
    def abandon_the_unfinished() -> None:
        for stage in session.runs:
            _guarded(session.abandon)(stage)

    return session
