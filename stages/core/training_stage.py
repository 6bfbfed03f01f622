"""What the two training stages share: hold the work, train, write the model and its curve."""

from functools import partial
from pathlib import Path
from typing import Any

from stages.core import models, tracking
from stages.core.batches import Split
from stages.core.checkpoints import Checkpoint, die_with_parent, work_key
from stages.core.devices import make_fabric
from stages.core.store import Store
from stages.core.training import Method, fit, write_history
from stages.core.validation import Row, Validation


def carry_out(
    stage: str,
    p: Any,
    store: Store,
    model: models.Classifier,
    validation: Validation,
    method: Method,
    *,
    inputs: list[Path],
    model_file: Path,
    history_file: Path,
) -> Row:
    """Train ``model`` as section ``stage`` of the params says; write it and one row per epoch.

    p: all params that the stage declares, and ``runtime``, which changes no result; inputs: all files that it read.
    Returns the chosen epoch's row. Raises BusyError when another trainer does the same work.
    """
    die_with_parent()
    fabric = make_fabric(p.runtime)
    work = work_key({name: value for name, value in vars(p).items() if name != "runtime"}, inputs)
    with Checkpoint(stage, work).held(fabric) as checkpoint:
        result = fit(
            fabric,
            model,
            Split.of(store, "train"),
            validation,
            getattr(p, stage),
            method=method,
            seed=p.seed,
            checkpoint=checkpoint,
            on_epoch=partial(tracking.log_epoch, stage),
        )
        if fabric.is_global_zero:
            model.load_state_dict(result.state)
            models.save(model_file, model)
            write_history(history_file, result)
            tracking.log_stage(stage, p)
    return result.history[result.epoch - 1]
