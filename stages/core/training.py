"""One training loop for both models: ``perturb`` is the only difference between clean and adversarial training."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from stages.core.augmentation import augment
from stages.core.batches import Split
from stages.core.checkpoints import Checkpoint
from stages.core.devices import crafting
from stages.core.models import Classifier, folded
from stages.core.params import Training

# (model, x, y, eps, noise) -> x_adv; see perturbations.py
Perturb = Callable[[nn.Module, Tensor, Tensor, float, Tensor], Tensor]
Row = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """How an epoch is judged: attacked at ``eps`` on the first ``images`` pictures; the best ``score`` (a tuple) is kept."""

    split: Split
    attack: Perturb
    eps: float
    images: int
    score: Callable[[Row], tuple[float, ...]]


@dataclass(frozen=True)
class Result:
    """The chosen weights, the epoch they are of, and one row per epoch."""

    state: dict[str, Tensor]
    epoch: int
    history: list[Row]


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over the first ``warmup`` of all steps, then a cosine to zero."""
    first = warmup * total
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / (total - first)))


def eps_factor(step: int, total: int, ramp: float) -> float:
    """Share of the full budget: 0 at the start, full after the first ``ramp`` of all steps.

    Full eps from the first step is a known failure when the start isn't a robust model (arXiv:2509.23325).
    """
    return min(1.0, step / (ramp * total)) if ramp else 1.0


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (K,) of mean 1 over the pictures, the same total for every class."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1))


def make_optimizer(model: Classifier, p: Training) -> torch.optim.Optimizer:
    """SGD or AdamW: no decay of norms and biases, a learning rate of their own for the layers below the head."""
    head = model.head + "."
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            lr = p.lr if name.startswith(head) else p.lr * p.backbone_lr
            groups.setdefault((lr, p.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    settings = [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]
    if p.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)


def epoch_order(split: Split, classes: int, p: Training, draws: torch.Generator) -> np.ndarray:
    """Positions of one epoch's pictures: a permutation, or as many draws with every class equally often."""
    if p.balance == "sampler":
        labels = split.labels[split.rows]
        weights = torch.from_numpy(class_weights(labels, classes)[labels])
        return torch.multinomial(weights, len(split), replacement=True, generator=draws).numpy()
    return torch.randperm(len(split), generator=draws).numpy()


def judge(fabric: Fabric, model: nn.Module, v: Validation, seed: int, batch_size: int) -> Row:
    """Losses and accuracies on validation pictures in eval mode, clean and under attack."""
    clean: list[Tensor] = []
    attacked: list[Tensor] = []
    labels: list[Tensor] = []
    noise_source = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    with crafting(fabric):
        for start in range(0, len(v.split), batch_size):
            x, y = v.split.batch(np.arange(start, min(start + batch_size, len(v.split))), fabric.device)
            labels.append(y)
            with torch.no_grad():
                clean.append(model(x))
            if (few := v.images - start) > 0:
                x, y = x[:few], y[:few]
                noise = torch.rand(x.shape, generator=noise_source).mul_(2).sub_(1).to(x)
                x_adv = v.attack(model, x, y, v.eps, noise)
                with torch.no_grad():
                    attacked.append(model(x_adv))
    model.train(was_training)
    y, logits, logits_adv = torch.cat(labels), torch.cat(clean), torch.cat(attacked)
    y_adv = y[: len(logits_adv)]
    return {
        "val_loss": F.cross_entropy(logits, y).item(),
        "val_clean_accuracy": (logits.argmax(1) == y).float().mean().item(),
        "val_balanced_accuracy": float(balanced_accuracy_score(y.cpu(), logits.argmax(1).cpu())),
        "val_robust_loss": F.cross_entropy(logits_adv, y_adv).item(),
        "val_robust_accuracy": (logits_adv.argmax(1) == y_adv).float().mean().item(),
    }


def fit(
    fabric: Fabric,
    model: Classifier,
    train: Split,
    validation: Validation,
    p: Training,
    *,
    seed: int,
    checkpoint: Checkpoint,
    perturb: Perturb | None = None,
    eps: float = 0.0,
    eps_ramp: float = 0.0,
    clean_share: float = 0.0,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Result:
    """Train, judge every epoch, and return the weights of the epoch with the best validation score.

    Every random number of an epoch comes from (seed, epoch), so that a run that was killed goes on from its last epoch and
    ends with the same bits as one that was not.

    Args:
        perturb: makes the training batch adversarial; None trains on clean pictures.
        eps: full budget of ``perturb``, reached after the first ``eps_ramp`` of all steps.
        clean_share: share of every batch that is left clean.

    Raises FloatingPointError when the loss is not finite, naming epoch and step.
    """
    classes = len(model.classes)
    weights = class_weights(train.labels[train.rows], classes) if p.balance == "loss" else np.ones(classes)
    loss_weights = torch.tensor(weights, dtype=torch.float32, device=fabric.device)
    model.freeze(p.freeze)
    wrapped, optimizer = fabric.setup(model, make_optimizer(model, p))
    inner = wrapped.module  # attacks differentiate the input alone, past the wrapper's gradient exchange
    average = AveragedModel(inner, multi_avg_fn=get_ema_multi_avg_fn(p.ema), use_buffers=True) if p.ema else None
    steps = max(1, len(train) // p.batch_size)  # the rest of a shuffled epoch is left out: a batch of one breaks BatchNorm
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, p.epochs * steps, p.warmup))

    history: list[Row] = []
    best: dict[str, Any] = {"score": (-math.inf,), "epoch": -1, "state": {}}
    if (last := checkpoint.load()) is not None:
        inner.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        scheduler.load_state_dict(last["scheduler"])
        if average is not None:
            average.load_state_dict(last["average"])
        history, best = last["history"], last["best"]
        fabric.print(f"going on after epoch {len(history)} of {p.epochs}")

    for epoch in range(len(history), p.epochs):
        if p.patience and epoch - max(best["epoch"], 0) >= p.patience:
            fabric.print(f"no better validation score for {p.patience} epochs: stopping")
            break
        # Dropout layers draw from the global generator, everything else from this one.
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(epoch_seed)
        draws = torch.Generator().manual_seed(epoch_seed)
        order = epoch_order(train, classes, p, draws)
        total_loss, correct, seen = 0.0, 0, 0
        wrapped.train()
        bar = tqdm(
            range(steps), f"epoch {epoch + 1}/{p.epochs}", leave=False, disable=not sys.stderr.isatty() or fabric.global_rank
        )
        for step in bar:
            positions = order[step * p.batch_size : (step + 1) * p.batch_size]
            changes, shape = torch.rand(len(positions), 8, generator=draws), (len(positions), 3, *train.images.shape[1:3])
            noise = torch.rand(shape, generator=draws).mul_(2).sub_(1) if perturb else None
            # Drawn for the whole batch and then shared out, so that the number of processes doesn't change what is trained on.
            mine = slice(fabric.global_rank, None, fabric.world_size)
            x, y = train.batch(positions[mine], fabric.device)
            x = augment(x, p.augment, changes[mine])
            done = epoch * steps + step
            if perturb is not None and noise is not None:
                budget = eps * eps_factor(done, p.epochs * steps, eps_ramp)
                dirty = slice(math.floor(clean_share * len(x)), None)
                with crafting(fabric):
                    x[dirty] = perturb(inner, x[dirty], y[dirty], budget, noise[mine][dirty].to(x))
            logits = wrapped(x)
            loss = F.cross_entropy(logits, y, weight=loss_weights, label_smoothing=p.label_smoothing, reduction="none").mean()
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"epoch {epoch + 1}, step {step + 1}: expected a finite loss, got {loss.item()}; "
                    "lower lr or set clip_norm; the state of the epoch before is kept"
                )
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            if p.clip_norm:
                fabric.clip_gradients(wrapped, optimizer, max_norm=p.clip_norm)
            optimizer.step()
            scheduler.step()
            if average is not None:
                average.update_parameters(inner)
            total_loss, seen = total_loss + loss.item() * len(x), seen + len(x)
            correct += int((logits.argmax(1) == y).sum())
            bar.set_postfix(loss=f"{total_loss / seen:.3f}", refresh=False)

        judged = average.module if average is not None else inner
        row = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[-1]["lr"],
            "eps": eps * eps_factor((epoch + 1) * steps, p.epochs * steps, eps_ramp) if perturb else 0.0,
            "train_loss": total_loss / seen,
            "train_accuracy": correct / seen,
            **judge(fabric, folded(judged), validation, seed, p.batch_size * 2),
        }
        history.append(row)
        if (score := validation.score(row)) > tuple(best["score"]):
            best = {"score": score, "epoch": epoch + 1, "state": copy.deepcopy(judged.state_dict())}
        if fabric.is_global_zero:
            checkpoint.save(
                {
                    "model": inner.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "average": average.state_dict() if average is not None else {},
                    "history": history,
                    "best": best,
                }
            )
        fabric.print(
            f"epoch {epoch + 1:3d}/{p.epochs}  loss {row['train_loss']:.3f}  validation: clean {row['val_clean_accuracy']:.3f}"
            f"  attacked {row['val_robust_accuracy']:.3f}{'  (best)' if best['epoch'] == epoch + 1 else ''}",
            flush=True,
        )
        on_epoch(row)
    return Result(best["state"], best["epoch"], history)


def write_history(file: Path, result: Result) -> None:
    """One row per epoch; ``chosen`` is 1 in the row of the weights that were kept."""
    table = pd.DataFrame(result.history)
    table["chosen"] = (table["epoch"] == result.epoch).astype(int)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
