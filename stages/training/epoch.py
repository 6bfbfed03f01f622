"""One epoch of training: its batches, what is done with each, and the metrics.

Start with `train_epoch`. Each step perturbs a batch, computes the loss and updates the weights; the
`TrainingMethod` decides how a batch is perturbed and which loss is minimized; `methods.py` has
those of adversarial training.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.core.params import TrainingParams
from stages.models.batches import DatasetSplit, class_weights, epoch_positions
from stages.models.classifier import Classifier
from stages.training.augmentation import augment
from stages.training.optimizer import Learner, adversarial_weights, all_reduce
from stages.training.validation import EpochMetrics

REMEDY = "lower lr or set clip_norm; the checkpoint of the epoch before is kept"


class TrainingMethod(ABC):
    """How a batch is perturbed, and which loss is minimized."""

    eps: float = 0.0  # perturbation budget
    eps_ramp: float = 0.0  # eps increases from 0 over this fraction of all steps
    clean_fraction: float = 0.0  # of every batch, stays clean
    replays: int = 1  # steps in a row on the same batch; an epoch keeps its number of steps
    awp: float = 0.0  # relative size of the adversarial weight perturbation; 0 = off
    needs_noise: bool = False  # whether `perturb` uses its noise

    def __init__(self, p: TrainingParams) -> None:
        self.label_smoothing = p.label_smoothing

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The perturbed images x_adv (B, 3, H, W); noise is like x, uniform in [-1, 1]."""

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,), and the logits (B, K) of which the training accuracy is computed."""
        logits = model(x_adv)
        return self.cross_entropy(logits, y), logits

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B, K), (B,) -> (B,)."""
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)

    def next_noise(self, noise: Tensor, gradient: Tensor) -> Tensor:
        """The noise of a batch's next replay, from the gradient of the loss at x_adv."""
        return noise

    def eps_at(self, step: int, total: int) -> float:
        """The eps of one of all steps: it increases linearly from 0, then stays at the full budget.

        The full eps from the first step on is a known failure when the initial weights aren't
        robust (arXiv:2509.23325).
        """
        return self.eps * min(1.0, step / (self.eps_ramp * total)) if self.eps_ramp else self.eps


class StandardTraining(TrainingMethod):
    """Training on clean images."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Training:
    """What is trained (the model, with its initial weights), on which images and how."""

    model: Classifier
    images: DatasetSplit
    method: TrainingMethod
    p: TrainingParams
    seed: int

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch. The rest of its images is left out: BatchNorm can't train on one."""
        return max(1, len(self.images) // self.p.batch_size)

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.p.epochs * self.epoch_steps

    @cached_property
    def class_weights(self) -> Tensor:
        """Weight of each class in the loss (K,)."""
        classes = len(self.model.classes)
        if self.p.balance != "loss":
            return torch.ones(classes)
        labels = self.images.labels[self.images.rows]
        return torch.tensor(class_weights(labels, classes), dtype=torch.float32)


@dataclass
class Batch:
    """This process's part of a batch."""

    x: Tensor  # (B, 3, H, W) in [0, 1]
    y: Tensor  # (B,)
    class_weights: Tensor  # (B,), of the labels y
    noise: Tensor  # like x, uniform in [-1, 1]; (B, 0) where the method needs none
    clean: int  # how many images, the first ones, stay clean
    share: float  # of one image in a mean over the whole batch

    def attacked(self, method: TrainingMethod, model: nn.Module, eps: float) -> Tensor:
        """x_adv (B, 3, H, W): the clean images, then the perturbed ones."""
        rest = slice(self.clean, None)
        x_adv = method.perturb(model, self.x[rest], self.y[rest], eps, self.noise[rest])
        return torch.cat([self.x[: self.clean], x_adv]) if self.clean else x_adv

    def mean_loss(
        self, model: nn.Module, method: TrainingMethod, x_adv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss () weighted by class, and logits (B, K)."""
        losses, logits = method.losses(model, self.x, x_adv, self.y)
        return (losses * self.class_weights).sum() * self.share, logits


def load_batch(
    fabric: Fabric, training: Training, positions: np.ndarray, generator: torch.Generator
) -> Batch:
    """The images at these positions, augmented.

    Random numbers are drawn for the whole batch and then divided among the processes: how many
    there are changes no image.
    """
    method, device, size = training.method, fabric.device, len(positions)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    changes = torch.rand(size, 8, generator=generator, device=device)
    x, y = training.images.load(positions[mine], device)
    x = augment(x, training.p.augment, changes[mine])
    shape = (size, *x.shape[1:]) if method.needs_noise else (size, 0)
    noise = torch.rand(shape, generator=generator, device=device).mul_(2).sub_(1)
    clean = len(range(math.floor(method.clean_fraction * size))[mine])
    # Gradients are averaged over processes, whose parts may differ by an image.
    share = fabric.world_size / size
    weights = training.class_weights.to(device, non_blocking=True)[y]
    return Batch(x, y, weights, noise[mine], clean, share)


def epoch_batches(fabric: Fabric, training: Training, seed: int) -> Iterator[Batch]:
    """The batch of each step, in random order; a replayed one comes several times in a row."""
    p, images, replays = training.p, training.images, training.method.replays
    shuffler = torch.Generator().manual_seed(seed)
    order = epoch_positions(images, len(training.model.classes), p.balance, shuffler)
    # On the device: there the many numbers of the noise are drawn fastest.
    generator = torch.Generator(fabric.device).manual_seed(seed)
    for step in range(training.epoch_steps):
        if step % replays == 0:
            first = step // replays * p.batch_size
            batch = load_batch(fabric, training, order[first : first + p.batch_size], generator)
        yield batch


def train_step(
    learner: Learner, method: TrainingMethod, batch: Batch, eps: float
) -> tuple[Tensor, Tensor]:
    """Perturb the batch and update the weights; returns the loss () and logits (B, K)."""
    with learner.fabric.autocast():
        x_adv = batch.attacked(method, learner.module, eps)
    x_adv.requires_grad_(method.replays > 1)
    loss_of = partial(batch.mean_loss, method=method, x_adv=x_adv)
    with adversarial_weights(learner.fabric, learner.module, loss_of, gamma=method.awp):
        loss, logits = loss_of(learner.model)
        learner.backward(loss)
    learner.step()
    if x_adv.grad is not None:
        rest = slice(batch.clean, None)
        batch.noise[rest] = method.next_noise(batch.noise[rest], x_adv.grad[rest])
    return loss.detach(), logits.detach()


class Meter:
    """Loss and accuracy of an epoch: on the device until its end, so that a GPU never waits."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), device=device)
        self.images = torch.zeros((), device=device)

    def update(self, step: int, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count a batch: its loss (), logits (B, K) and labels (B,)."""
        self.losses[step] = loss
        self.correct += (logits.argmax(1) == y).sum()
        self.images += len(y)

    def metrics(self, fabric: Fabric, epoch: int) -> EpochMetrics:
        """Of all processes; raises FloatingPointError when a loss is not finite."""
        losses = all_reduce(fabric, self.losses, "mean")
        if len(invalid := (~losses.isfinite()).nonzero()):
            raise FloatingPointError(
                f"epoch {epoch + 1}, step {invalid[0].item() + 1}: expected a finite loss, "
                f"got {losses[invalid[0]].item()}; {REMEDY}"
            )
        correct, images = (all_reduce(fabric, n, "sum").item() for n in (self.correct, self.images))
        return {"train_loss": losses.mean().item(), "train_accuracy": correct / images}


def train_epoch(training: Training, learner: Learner, epoch: int) -> EpochMetrics:
    """Train one epoch, counted from 0; all random numbers come from the seed and the epoch.

    Raises:
        FloatingPointError: when a loss is not finite; in all processes.
    """
    fabric, method = learner.fabric, training.method
    state = np.random.SeedSequence([training.seed, epoch]).generate_state(1, np.uint64)
    seed = int(state[0] >> 1)
    torch.manual_seed(seed)  # dropout layers use the global generator
    meter = Meter(training.epoch_steps, fabric.device)
    learner.model.train()
    batches = tqdm(
        epoch_batches(fabric, training, seed),
        f"epoch {epoch + 1}/{training.p.epochs}",
        training.epoch_steps,
        unit=" images",
        unit_scale=training.p.batch_size,
        leave=False,
        disable=not (sys.stderr.isatty() and fabric.is_global_zero),
    )
    for step, batch in enumerate(batches):
        eps = method.eps_at(epoch * training.epoch_steps + step, training.steps)
        loss, logits = train_step(learner, method, batch, eps)
        meter.update(step, loss, logits, batch.y)
    return meter.metrics(fabric, epoch)
