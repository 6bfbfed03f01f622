"""The training loop of both models; what is done to a batch, the `TrainingMethod`, is the only difference."""

import copy
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.core.checkpoints import Checkpoint
from stages.core.files import write_csv
from stages.core.params import TrainingParams
from stages.models.batches import DatasetSplit, class_weights, epoch_positions
from stages.models.classifier import Classifier, fuse_batchnorm
from stages.training.augmentation import augment
from stages.training.optimization import Learner
from stages.training.validation import EpochMetrics, Validation, validate

REMEDY = "lower lr or set clip_norm; the checkpoint of the epoch before is kept"
Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), y (B,)) -> losses (B,)


class TrainingMethod:
    """What is done to a batch. As it stands: standard training; `methods.py` has adversarial training.

    Attributes:
        needs_noise: whether `perturb` uses noise.
        replays: steps in a row on the same batch; an epoch keeps its number of steps, on as many times fewer images.
        eps: full budget, reached after the fraction ``eps_ramp`` of all steps.
        eps_ramp: see ``eps``.
        clean_fraction: fraction of every batch that stays clean.
    """

    needs_noise = False
    replays: int = 1
    eps: float = 0.0
    eps_ramp: float = 0.0
    clean_fraction: float = 0.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """x_adv (B, 3, H, W); noise is uniform in [-1, 1]."""
        return x

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,), and logits (B, K) for the training accuracy: by default the criterion on x_adv alone."""
        logits = model(x_adv)
        return criterion(logits, y), logits

    def weight_perturbation(
        self, fabric: Fabric, model: nn.Module, loss: Callable[[nn.Module], Tensor]
    ) -> AbstractContextManager[None]:
        """A context in which the gradient with respect to the weights is computed."""
        return nullcontext()

    def update_noise(self, noise: Tensor, gradient: Tensor) -> Tensor:
        """The noise of the batch's next replay, from the gradient of the training loss at x_adv."""
        return noise

    def eps_at(self, step: int, total: int) -> float:
        """The eps of this step of all: from 0 linearly to full.

        Full eps from the first step is a known failure when the initial weights aren't robust (arXiv:2509.23325).
        """
        return self.eps * min(1.0, step / (self.eps_ramp * total)) if self.eps_ramp else self.eps


@dataclass(frozen=True)
class TrainingResult:
    """The selected weights, their epoch, and the metrics of all epochs."""

    state: dict[str, Tensor]
    epoch: int
    history: list[EpochMetrics]


@dataclass
class Batch:
    """This process's part of a batch of ``size`` images; the first ``clean`` images of it stay clean."""

    x: Tensor
    y: Tensor
    noise: Tensor
    clean: int
    size: int


@dataclass
class Best:
    """The best epoch so far."""

    score: tuple[float, ...] = (-math.inf,)
    epoch: int = 0
    state: dict[str, Tensor] | None = None


def load_batch(
    fabric: Fabric,
    train: DatasetSplit,
    positions: np.ndarray,
    p: TrainingParams,
    method: TrainingMethod,
    generator: torch.Generator,
) -> Batch:
    """Random numbers are drawn for the whole batch, then divided: the number of processes changes no image."""
    size, mine = len(positions), slice(fabric.global_rank, None, fabric.world_size)
    changes = torch.rand(size, 8, generator=generator, device=fabric.device)
    x, y = train.load(positions[mine], fabric.device)
    x = augment(x, p.augment, changes[mine])
    shape = (size, *x.shape[1:]) if method.needs_noise else (size, 0)
    noise = torch.rand(shape, generator=generator, device=fabric.device).mul_(2).sub_(1)
    clean = len(range(math.floor(method.clean_fraction * size))[mine])
    return Batch(x, y, noise[mine], clean, size)


def train_epoch(
    fabric: Fabric,
    learner: Learner,
    train: DatasetSplit,
    p: TrainingParams,
    method: TrainingMethod,
    seed: int,
    epoch: int,
    previous: EpochMetrics,
) -> EpochMetrics:
    """One epoch of steps; every random number comes from (seed, epoch).

    Args:
        fabric: device, precision and processes.
        learner: what is trained.
        train: the training images.
        p: of the training.
        method: what is done to a batch.
        seed: of the run.
        epoch: from 0.
        previous: the metrics of the epoch before, for the progress bar.

    Raises:
        FloatingPointError: when the loss is not finite, in all processes.
    """
    classes = len(learner.module.classes)
    weights = (
        class_weights(train.labels[train.rows], classes)
        if p.balance == "loss"
        else np.ones(classes)
    )
    class_weight = torch.tensor(weights, dtype=torch.float32, device=fabric.device)
    criterion = partial(F.cross_entropy, reduction="none", label_smoothing=p.label_smoothing)

    def mean_loss(model: nn.Module, batch: Batch, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = method.losses(model, batch.x, x_adv, batch.y, criterion)
        # Gradients are averaged over processes, whose parts may differ by an image.
        return (losses * class_weight[batch.y]).sum() * (fabric.world_size / batch.size), logits

    def loss_of(model: nn.Module) -> Tensor:
        with fabric.autocast():
            return mean_loss(model, batch, x_adv)[0]

    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(epoch_seed)  # for dropout layers, which know no other generator
    order = epoch_positions(train, classes, p.balance, torch.Generator().manual_seed(epoch_seed))
    generator = torch.Generator(fabric.device).manual_seed(
        epoch_seed
    )  # where so many numbers are drawn fastest
    steps = steps_per_epoch(train, p)
    step_losses = torch.zeros(steps, device=fabric.device)
    correct, seen = torch.zeros((), device=fabric.device), 0
    learner.model.train()
    show = sys.stderr.isatty() and fabric.is_global_zero
    title, images = f"epoch {epoch + 1}/{p.epochs}", steps * p.batch_size
    with tqdm(desc=title, total=images, unit=" images", leave=False, disable=not show) as bar:
        for step in range(steps):
            if step % method.replays == 0:
                first = step // method.replays * p.batch_size
                batch = load_batch(
                    fabric, train, order[first : first + p.batch_size], p, method, generator
                )
            eps = method.eps_at(epoch * steps + step, p.epochs * steps)
            attacked = slice(batch.clean, None)
            with fabric.autocast():
                perturbed = method.perturb(
                    learner.module, batch.x[attacked], batch.y[attacked], eps, batch.noise[attacked]
                )
            perturbed.requires_grad_(method.replays > 1)
            x_adv = torch.cat([batch.x[: batch.clean], perturbed]) if batch.clean else perturbed
            with method.weight_perturbation(fabric, learner.module, loss_of):
                loss, logits = mean_loss(learner.model, batch, x_adv)
                learner.backward(loss)
            learner.step()
            if perturbed.grad is not None:  # it is replayed
                batch.noise[attacked] = method.update_noise(batch.noise[attacked], perturbed.grad)
            # Nothing is read back before the epoch's end, but for the progress bar: a GPU need not wait for this process.
            step_losses[step] = loss.detach()
            correct += (logits.argmax(1) == batch.y).sum()
            seen += batch.size
            if show and step % 20 == 0:
                bar.set_postfix(
                    {"loss": f"{step_losses[: step + 1].mean():.3f}", **_accuracies(previous)},
                    refresh=False,
                )
            bar.update(batch.size)
    step_losses = reduced(fabric, step_losses, "mean")
    correct = reduced(fabric, correct, "sum")
    if len(invalid := (~step_losses.isfinite()).nonzero()):
        raise FloatingPointError(
            f"epoch {epoch + 1}, step {invalid[0].item() + 1}: expected a finite loss, got {step_losses[invalid[0]].item()}; "
            + REMEDY
        )
    return {"train_loss": step_losses.mean().item(), "train_accuracy": correct.item() / seen}


def reduced(fabric: Fabric, values: Tensor, operation: str) -> Tensor:
    """The values of all processes, reduced elementwise."""
    result = fabric.all_reduce(values, reduce_op=operation)
    assert isinstance(result, Tensor)
    return result


def _accuracies(row: EpochMetrics) -> dict[str, str]:
    return {name: f"{row[f'val_{name}_accuracy']:.3f}" for name in ("clean", "robust") if row}


def steps_per_epoch(train: DatasetSplit, p: TrainingParams) -> int:
    """The rest of a shuffled epoch is left out, for a batch of one breaks BatchNorm."""
    return max(1, len(train) // p.batch_size)


def fit(
    fabric: Fabric,
    model: Classifier,
    train: DatasetSplit,
    validation: Validation,
    p: TrainingParams,
    *,
    method: TrainingMethod,
    seed: int,
    checkpoint: Checkpoint,
    on_epoch: Callable[[EpochMetrics], None],
) -> TrainingResult:
    """Train, validate every epoch, and return the weights of the epoch with the best validation score.

    A run that was interrupted resumes from its last epoch and is bit-identical to an uninterrupted one.

    Raises:
        FloatingPointError: when a loss is not finite; the message names the epoch, and the step in training.
    """
    steps = steps_per_epoch(train, p)
    learner = Learner(fabric, model, p, p.epochs * steps)
    history: list[EpochMetrics] = []
    best = Best()

    def say(text: str) -> None:
        if fabric.is_global_zero:  # fabric.print would speak once on every node
            print(text, flush=True)

    if (
        saved := fabric.broadcast(checkpoint.load() if fabric.is_global_zero else None)
    ) is not None:
        learner.load_state_dict(saved["learner"])
        history, best = (
            saved["history"],
            Best(tuple(saved["best"]["score"]), saved["best"]["epoch"], saved["best"]["state"]),
        )
        say(f"resuming after epoch {len(history)}/{p.epochs}")

    while len(history) < p.epochs and not _stop_reason(history, best.epoch, p, validation):
        epoch = len(history)
        row = {
            "epoch": epoch + 1,
            "lr": learner.lr,
            "eps": method.eps_at((epoch + 1) * steps, p.epochs * steps),
            **train_epoch(
                fabric, learner, train, p, method, seed, epoch, history[-1] if history else {}
            ),
        }
        # All processes have the same weights: one validates and broadcasts the metrics.
        metrics: EpochMetrics = {}
        if fabric.is_global_zero:
            metrics = validate(
                fabric, fuse_batchnorm(learner.eval_model), validation, seed, p.batch_size * 2
            )
        row |= fabric.broadcast(metrics)
        if not math.isfinite(loss := row["val_loss"] + row["val_robust_loss"]):
            raise FloatingPointError(
                f"epoch {epoch + 1}: expected a finite validation loss, got {loss}; {REMEDY}"
            )
        history.append(row | validation.history_metrics([*history, row]))
        if (score := validation.score(row)) > best.score:
            best = Best(score, epoch + 1, copy.deepcopy(learner.eval_model.state_dict()))
        if fabric.is_global_zero:
            checkpoint.save(
                {"learner": learner.state_dict(), "history": history, "best": vars(best)}
            )
            on_epoch(history[-1])
        say(
            f"epoch {epoch + 1:3d}/{p.epochs}  loss {row['train_loss']:.3f}  val: accuracy {row['val_clean_accuracy']:.3f}"
            f"  robust accuracy {row['val_robust_accuracy']:.3f}{'  (best)' if best.epoch == epoch + 1 else ''}",
        )
    if reason := _stop_reason(history, best.epoch, p, validation):
        say(f"stopped after epoch {len(history)}/{p.epochs}, keeping epoch {best.epoch}: {reason}")
    assert best.state is not None  # every epoch has a finite score
    return TrainingResult(best.state, best.epoch, history)


def _stop_reason(
    history: Sequence[EpochMetrics], best_epoch: int, p: TrainingParams, validation: Validation
) -> str:
    if history and (reason := validation.stop_reason(history)):
        return reason
    if p.patience and len(history) - best_epoch >= p.patience:
        return f"no better validation score for {p.patience} epochs"
    return ""


def write_history(file: Path, result: TrainingResult) -> None:
    """One row per epoch; ``chosen`` is 1 in the row of the selected weights."""
    table = pd.DataFrame(result.history)
    table["chosen"] = (table["epoch"] == result.epoch).astype(int)
    write_csv(file, table)
