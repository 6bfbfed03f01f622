"""What the two training stages share: lock the run, train, write the model and its training curve."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from stages.core.checkpoints import Checkpoint, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST
from stages.core.devices import make_fabric
from stages.core.params import StageParams, TrainingParams
from stages.core.paths import PROCESSED, history_path, weights_path
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.training.loop import TrainingMethod, fit, write_history
from stages.training.validation import EpochMetrics, Validation


def run_training(
    name: str,
    model: Classifier,
    train: DatasetSplit,
    validation: Validation,
    method: TrainingMethod,
    p: StageParams,
    training: TrainingParams,
    *,
    initial_weights: list[Path],
    log_epoch: Callable[[str, EpochMetrics], None],
    log_stage: Callable[[str, StageParams], None],
) -> EpochMetrics:
    """Train one of MODELS, write it and its training curve, log them.

    Args:
        name: of the model; its stage is ``train_<name>``.
        model: with its initial weights.
        train: the training images.
        validation: on the validation images.
        method: of training.
        p: all params of the stage.
        training: the section of them that governs the training.
        initial_weights: files that the initial weights come from.
        log_epoch: called after every epoch.
        log_stage: called at the end.

    Returns:
        The metrics of the selected epoch.

    Raises:
        AlreadyRunningError: when another process runs the same training.
    """
    stage = f"train_{name}"
    fabric = make_fabric(p.runtime)
    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST, *initial_weights]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint(stage, fingerprint).lock(fabric) as checkpoint:
        on_epoch = partial(log_epoch, stage)
        result = fit(
            fabric,
            model,
            train,
            validation,
            training,
            method=method,
            seed=p.seed,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
        if fabric.is_global_zero:
            model.load_state_dict(result.state)
            classifier.save(weights_path(name), model)
            write_history(history_path(name), result)
            log_stage(stage, p)
    return result.history[result.epoch - 1]
