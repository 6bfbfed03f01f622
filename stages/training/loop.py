"""All epochs of a training: resume, train, validate, keep the best weights, stop."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from lightning_fabric import Fabric
from torch import Tensor

from stages.core.checkpoints import Checkpoint
from stages.core.files import write_csv
from stages.models.packed import for_attacks
from stages.training.epoch import REMEDY, Training, train_epoch
from stages.training.optimizer import Learner
from stages.training.validation import EpochMetrics, Validation, validate


@dataclass
class Progress:
    """The metrics of all epochs so far, and the best epoch."""

    history: list[EpochMetrics] = field(default_factory=list)
    epoch: int = 0  # the best one, counted from 1
    score: tuple[float, ...] = (-math.inf,)  # its validation score
    state: dict[str, Tensor] = field(default_factory=dict)  # its weights


def fit(
    fabric: Fabric,
    training: Training,
    validation: Validation,
    checkpoint: Checkpoint,
    on_epoch: Callable[[EpochMetrics], None],
) -> Progress:
    """Train, validate after every epoch, and give the model the weights of the best epoch.

    A run that was interrupted resumes after its last epoch; the result is bit-identical to that of
    an uninterrupted run.

    Args:
        fabric: device, precision and processes.
        training: its model is changed.
        validation: selects the best epoch.
        checkpoint: holds the state after each epoch.
        on_epoch: called with the metrics of each epoch, in the first process.

    Raises:
        FloatingPointError: when a loss is not finite; the message names the epoch.
    """
    p, progress = training.p, Progress()
    learner = Learner(fabric, training.model, p, training.steps)
    saved = fabric.broadcast(checkpoint.load() if fabric.is_global_zero else None)
    if saved is not None:
        learner.load_state_dict(saved["learner"])
        progress = Progress(**saved["progress"])
        say(fabric, f"resuming after epoch {len(progress.history)}/{p.epochs}")

    while len(progress.history) < p.epochs and not stop_reason(progress, validation, p.patience):
        row = run_epoch(training, validation, learner, epoch=len(progress.history))
        row |= validation.history_metrics([*progress.history, row])
        progress.history.append(row)
        if (score := validation.score(row)) > progress.score:
            progress.epoch, progress.score = len(progress.history), score
            progress.state = copy.deepcopy(learner.eval_model.state_dict())
        if fabric.is_global_zero:
            checkpoint.save({"learner": learner.state_dict(), "progress": vars(progress)})
            on_epoch(row)
        say(
            fabric,
            f"epoch {row['epoch']:3d}/{p.epochs}  loss {row['train_loss']:.3f}"
            f"  validation: loss {row['val_loss']:.3f}  accuracy {row['val_clean_accuracy']:.3f}"
            f"  robust accuracy {row['val_robust_accuracy']:.3f}"
            f"{f'  (best {validation.criterion})' if progress.epoch == row['epoch'] else ''}",
        )
    if reason := stop_reason(progress, validation, p.patience):
        epochs = f"epoch {len(progress.history)}/{p.epochs}, keeping epoch {progress.epoch}"
        say(fabric, f"stopped after {epochs}: {reason}")
    training.model.load_state_dict(progress.state)
    return progress


def run_epoch(
    training: Training, validation: Validation, learner: Learner, epoch: int
) -> EpochMetrics:
    """Train an epoch, counted from 0, and validate."""
    fabric, steps = learner.fabric, training.epoch_steps
    row = {
        "epoch": epoch + 1,
        "lr": learner.lr,
        "eps": training.method.eps_at((epoch + 1) * steps, training.steps),
        **train_epoch(training, learner, epoch),
    }
    # All processes have the same weights: one validates, and sends the metrics to the others.
    metrics: EpochMetrics = {}
    if fabric.is_global_zero:
        attacked, batch_size = for_attacks(learner.eval_model, fabric), 2 * training.p.batch_size
        metrics = validate(fabric, attacked, validation, training.seed, batch_size)
    row |= fabric.broadcast(metrics)
    if not math.isfinite(loss := row["val_loss"] + row["val_robust_loss"]):
        raise FloatingPointError(
            f"epoch {epoch + 1}: expected a finite validation loss, got {loss}; {REMEDY}"
        )
    return row


def stop_reason(progress: Progress, validation: Validation, patience: int) -> str:
    """Why training must not go on, though epochs are left; empty if it may."""
    if progress.history and (reason := validation.stop_reason(progress.history)):
        return reason
    if patience and len(progress.history) - progress.epoch >= patience:
        return f"no better validation score for {patience} epochs"
    return ""


def say(fabric: Fabric, text: str) -> None:
    """Print once; fabric.print would print once on every node."""
    if fabric.is_global_zero:
        print(text, flush=True)


def write_history(file: Path, progress: Progress) -> None:
    """One row per epoch; ``chosen`` is 1 in the row of the selected weights."""
    table = pd.DataFrame(progress.history)
    table["chosen"] = (table["epoch"] == progress.epoch).astype(int)
    write_csv(file, table)
