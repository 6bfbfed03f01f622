"""What the two training stages share: lock the run, train, write the model and its training curve."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.checkpoints import Checkpoint, exit_with_parent, run_fingerprint
from stages.core.dataset import ImageDataset
from stages.core.devices import make_fabric
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.training.loop import TrainingMethod, fit, write_history
from stages.training.validation import Row, Validation


def run_training(
    stage: str,
    p: Any,
    store: ImageDataset,
    model: classifier.Classifier,
    validation: Validation,
    method: TrainingMethod,
    *,
    inputs: list[Path],
    model_file: Path,
    history_file: Path,
    on_epoch: Callable[[Row], None],
    on_end: Callable[[], None],
) -> Row:
    """Train ``model`` as section ``stage`` of the params says; write it and one row per epoch.

    p: all params that the stage declares, and ``runtime``, which changes no result; inputs: all files that it read.
    Returns the chosen epoch's row. Raises AlreadyRunningError when another process trains the same.
    """
    exit_with_parent()
    fabric = make_fabric(p.runtime)
    fingerprint = run_fingerprint({name: value for name, value in vars(p).items() if name != "runtime"}, inputs)
    with Checkpoint(stage, fingerprint).held(fabric) as checkpoint:
        result = fit(
            fabric,
            model,
            DatasetSplit.of(store, "train"),
            validation,
            getattr(p, stage),
            method=method,
            seed=p.seed,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
        if fabric.is_global_zero:
            model.load_state_dict(result.state)
            classifier.save(model_file, model)
            write_history(history_file, result)
            on_end()
    return result.history[result.epoch - 1]
