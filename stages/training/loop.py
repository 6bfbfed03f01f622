"""One training loop for both models: what is done to a batch, the ``TrainingMethod``, is the only difference."""

import copy
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.core.checkpoints import Checkpoint
from stages.core.params import Training
from stages.models.batches import DatasetSplit, class_weights, epoch_indices
from stages.models.classifier import Classifier, fuse_batchnorm
from stages.training.augmentation import augment
from stages.training.optimization import Learner
from stages.training.validation import Row, Validation, judge

Perturb = Callable[[nn.Module, Tensor, Tensor, float, Tensor], Tensor]  # (model, x, y, eps, noise) -> x_adv
Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), y (B,)) -> losses (B,)
Losses = Callable[[nn.Module, Tensor, Tensor, Tensor, Criterion], tuple[Tensor, Tensor]]  # -> losses (B,), logits (B, K)


def adversarial_loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
    """The criterion on the perturbed pictures alone."""
    logits = model(x_adv)
    return criterion(logits, y), logits


@dataclass(frozen=True)
class TrainingMethod:
    """What is done to a batch; without arguments clean training, for the others see adversarial.py.

    perturb: (model, x, y, eps, noise) -> x_adv; noise is uniform in [-1, 1] and the same in all replays of a batch.
    losses: (model, x, x_adv, y, criterion) -> losses (B,), logits (B, K) for the training accuracy.
    moved_weights: (fabric, model, loss of a model) -> context in which the gradient of the weights is taken.
    replays: steps in a row on the same batch; an epoch has as many steps as ever, on as many times fewer pictures.
    eps: full budget, reached after the first ``eps_ramp`` of all steps.
    clean_share: share of every batch that is left as it is.
    """

    perturb: Perturb | None = None
    losses: Losses = adversarial_loss
    moved_weights: Callable[[Fabric, nn.Module, Callable[[nn.Module], Tensor]], AbstractContextManager[None]] = lambda *_: (
        nullcontext()
    )
    replays: int = 1
    eps: float = 0.0
    eps_ramp: float = 0.0
    clean_share: float = 0.0

    def budget(self, step: int, total: int) -> float:
        """eps at this step of all: from 0 in a line to full.

        Full eps from the first step is a known failure when the start isn't a robust model (arXiv:2509.23325).
        """
        return self.eps * min(1.0, step / (self.eps_ramp * total)) if self.eps_ramp else self.eps


@dataclass(frozen=True)
class Result:
    """The chosen weights, the epoch they are of, and one row per epoch."""

    state: dict[str, Tensor]
    epoch: int
    history: list[Row]


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch of ``size``; the first ``clean`` pictures of it stay as they are."""

    x: Tensor
    y: Tensor
    noise: Tensor
    clean: int
    size: int


def load_batch(
    fabric: Fabric, train: DatasetSplit, positions: np.ndarray, p: Training, method: TrainingMethod, draws: torch.Generator
) -> Batch:
    """Random numbers are drawn for the whole batch, then shared out: how many processes there are changes no picture."""
    size, mine = len(positions), slice(fabric.global_rank, None, fabric.world_size)
    changes = torch.rand(size, 8, generator=draws, device=fabric.device)
    x, y = train.batch(positions[mine], fabric.device)
    x = augment(x, p.augment, changes[mine])
    shape = (size, *x.shape[1:]) if method.perturb else (size, 0)
    noise = torch.rand(shape, generator=draws, device=fabric.device).mul_(2).sub_(1)
    clean = len(range(math.floor(method.clean_share * size))[mine])
    return Batch(x, y, noise[mine], clean, size)


def perturbed(fabric: Fabric, model: nn.Module, batch: Batch, method: TrainingMethod, eps: float) -> Tensor:
    if method.perturb is None:
        return batch.x
    some = slice(batch.clean, None)
    with fabric.autocast():
        x_adv = method.perturb(model, batch.x[some], batch.y[some], eps, batch.noise[some])
    return torch.cat([batch.x[: batch.clean], x_adv])


def train_epoch(
    fabric: Fabric, learner: Learner, train: DatasetSplit, p: Training, method: TrainingMethod, seed: int, epoch: int, last: Row
) -> Row:
    """One epoch of steps; ``last`` is the row before, for the progress bar.

    Every random number comes from (seed, epoch). Raises FloatingPointError when the loss is not finite, in all processes.
    """
    classes = len(learner.inner.classes)
    weights = class_weights(train.labels[train.rows], classes) if p.balance == "loss" else np.ones(classes)
    weight_of = torch.tensor(weights, dtype=torch.float32, device=fabric.device)
    criterion = partial(F.cross_entropy, reduction="none", label_smoothing=p.label_smoothing)

    def mean_loss(model: nn.Module, batch: Batch, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = method.losses(model, batch.x, x_adv, batch.y, criterion)
        # Gradients are averaged over processes, whose shares may differ by a picture.
        return (losses * weight_of[batch.y]).sum() * (fabric.world_size / batch.size), logits

    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(epoch_seed)  # for dropout layers, which know no other generator
    order = epoch_indices(train, classes, p.balance, torch.Generator().manual_seed(epoch_seed))
    draws = torch.Generator(fabric.device).manual_seed(epoch_seed)  # where so many numbers are drawn fastest
    steps = steps_per_epoch(train, p)
    losses, correct, seen = torch.zeros(steps, device=fabric.device), torch.zeros((), device=fabric.device), 0
    learner.model.train()
    show = sys.stderr.isatty() and fabric.is_global_zero
    with tqdm(
        desc=f"epoch {epoch + 1}/{p.epochs}", total=steps * p.batch_size, unit=" images", leave=False, disable=not show
    ) as bar:
        for step in range(steps):
            if step % method.replays == 0:
                first = step // method.replays * p.batch_size
                batch = load_batch(fabric, train, order[first : first + p.batch_size], p, method, draws)
            eps = method.budget(epoch * steps + step, p.epochs * steps)
            x_adv = perturbed(fabric, learner.inner, batch, method, eps)
            loss_of = partial(mean_loss, batch=batch, x_adv=x_adv)
            with method.moved_weights(fabric, learner.inner, lambda model, loss_of=loss_of: loss_of(model)[0]):
                loss, logits = loss_of(learner.model)
                learner.backward(loss)
            learner.step()
            # Nothing is read back before the epoch's end, so that a GPU never waits for this process.
            losses[step], seen, correct = loss.detach(), seen + batch.size, correct + (logits.argmax(1) == batch.y).sum()
            if show:
                bar.set_postfix({"loss": f"{losses[: step + 1].mean():.3f}", **_accuracies(last)}, refresh=False)
                bar.update(batch.size)
    losses = fabric.all_reduce(losses, reduce_op="mean")
    correct = fabric.all_reduce(correct, reduce_op="sum")
    if (wrong := (~losses.isfinite()).nonzero()).numel():
        raise FloatingPointError(
            f"epoch {epoch + 1}, step {wrong[0].item() + 1}: expected a finite loss, got {losses[wrong[0]].item()}; "
            "lower lr or set clip_norm; the state of the epoch before is kept"
        )
    return {"train_loss": losses.mean().item(), "train_accuracy": correct.item() / seen}


def _accuracies(row: Row) -> dict[str, str]:
    return {name: f"{row[f'val_{name}_accuracy']:.3f}" for name in ("clean", "robust") if row}


def steps_per_epoch(train: DatasetSplit, p: Training) -> int:
    """Steps of an epoch: the rest of a shuffled epoch is left out, for a batch of one breaks BatchNorm."""
    return max(1, len(train) // p.batch_size)


def fit(
    fabric: Fabric,
    model: Classifier,
    train: DatasetSplit,
    validation: Validation,
    p: Training,
    *,
    method: TrainingMethod,
    seed: int,
    checkpoint: Checkpoint,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Result:
    """Train, judge every epoch, and return the weights of the epoch with the best validation score.

    A run that was killed goes on from its last epoch and ends with the same bits as one that was not.

    Raises FloatingPointError when the loss is not finite, naming epoch and step.
    """
    steps = steps_per_epoch(train, p)
    learner = Learner(fabric, model, p, p.epochs * steps)
    history: list[Row] = []
    best: dict[str, Any] = {"score": (-math.inf,), "epoch": 0, "state": {}}
    if (last := checkpoint.load()) is not None:
        learner.load_state_dict(last["learner"])
        history, best = last["history"], last["best"]
        fabric.print(f"going on after epoch {len(history)} of {p.epochs}")

    while len(history) < p.epochs and not _reason_to_stop(history, best["epoch"], p, validation):
        epoch = len(history)
        row = {
            "epoch": epoch + 1,
            "lr": learner.lr,
            "eps": method.budget((epoch + 1) * steps, p.epochs * steps),
            **train_epoch(fabric, learner, train, p, method, seed, epoch, history[-1] if history else {}),
        }
        # All processes have the same weights: one judges, and tells the others.
        row |= fabric.broadcast(
            judge(fabric, fuse_batchnorm(learner.judged), validation, seed, p.batch_size * 2) if fabric.is_global_zero else {}
        )
        history.append(row | validation.watch([*history, row]))
        if (score := validation.score(row)) > tuple(best["score"]):
            best = {"score": score, "epoch": epoch + 1, "state": copy.deepcopy(learner.judged.state_dict())}
        if fabric.is_global_zero:
            checkpoint.save({"learner": learner.state_dict(), "history": history, "best": best})
            on_epoch(history[-1])
        fabric.print(
            f"epoch {epoch + 1:3d}/{p.epochs}  loss {row['train_loss']:.3f}  validation: clean {row['val_clean_accuracy']:.3f}"
            f"  attacked {row['val_robust_accuracy']:.3f}{'  (best)' if best['epoch'] == epoch + 1 else ''}",
            flush=True,
        )
    if reason := _reason_to_stop(history, best["epoch"], p, validation):
        fabric.print(f"stopped after epoch {len(history)} of {p.epochs}, keeping epoch {best['epoch']}: {reason}")
    return Result(best["state"], best["epoch"], history)


def _reason_to_stop(history: Sequence[Row], best_epoch: int, p: Training, validation: Validation) -> str:
    if history and (alarm := validation.alarm(history)):
        return alarm
    if p.patience and len(history) - best_epoch >= p.patience:
        return f"no better validation score for {p.patience} epochs"
    return ""


def write_history(file: Path, result: Result) -> None:
    """One row per epoch; ``chosen`` is 1 in the row of the weights that were kept."""
    table = pd.DataFrame(result.history)
    table["chosen"] = (table["epoch"] == result.epoch).astype(int)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
