"""APGD on the margin to each other class and on the cross-entropy, for any number of classes.

Auto-PGD (Croce and Hein, arXiv:2003.01690, algorithm 1): gradient steps with momentum, whose size
is halved, going back to the best point, when the loss stops growing. An image is attacked by all
losses at once and leaves the batch with the first success. Computed in whatever precision is fast
on the device; a success counts when float32 confirms it, and the images that are left get a few
more steps in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.attacks.attack import EARLY_STOP_MARGIN, Noise, attack
from stages.attacks.gradient import is_adversarial, keep_worse, margin_loss
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.models.inference import attached_logits, frozen_eval_mode, predict_logits

CROSS_ENTROPY = -1  # in place of a target class
MOMENTUM, RHO = 0.75, 0.75  # alpha and rho of the paper
STEP_SIZE = 2.0  # the first one, relative to ε
FLOAT32_STEPS, FLOAT32_STEP_SIZE = 3, 0.25
SAMPLE = 1_000_000  # of the images' noise: the start of APGD alone


def target_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Logit of the target class minus that of class y, or the cross-entropy.

    Args:
        logits: (M, K).
        y: (M,).
        target: (M,) classes, or CROSS_ENTROPY.

    Returns:
        (M,).
    """
    label, other = logits.gather(1, torch.stack((y, target.clamp_min(0)), 1)).unbind(1)  # (M,) each
    cross_entropy = F.cross_entropy(logits, y, reduction="none")
    return torch.where(target == CROSS_ENTROPY, cross_entropy, other - label)


@dataclass
class Runs:
    """M runs of APGD: fields of images are (M, 3, H, W), those of numbers (M,).

    Attributes:
        x: clean images.
        y: labels.
        target: target classes, or CROSS_ENTROPY.
        point: where the run is.
        previous: where it was a step before.
        gradient: of the loss at ``point``.
        loss: at the point of the last step.
        margin: margin loss there.
        step_size: in pixel units.
        best_point: the visited point of the largest loss.
        best_gradient: there.
        best_loss: there.
        increases: steps since the last checkpoint that increased the loss.
        checkpoint_loss: best loss at the last checkpoint.
        halved: whether the step size was halved there.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    margin: Tensor
    step_size: Tensor
    best_point: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    increases: Tensor
    checkpoint_loss: Tensor
    halved: Tensor

    @classmethod
    def start(
        cls,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        target: Tensor,
        point: Tensor,
        step_size: float,
    ) -> "Runs":
        """Runs that begin at ``point``."""
        loss, margin, gradient = _loss_margin_gradient(model, point, y, target)
        return cls(
            x=x,
            y=y,
            target=target,
            point=point,
            previous=point,
            gradient=gradient,
            loss=loss,
            margin=margin,
            step_size=torch.full_like(loss, step_size),
            best_point=point,
            best_gradient=gradient,
            best_loss=loss,
            increases=torch.zeros_like(loss),
            checkpoint_loss=loss,
            # True, so that the first checkpoint judges by increases alone.
            halved=torch.ones_like(y, dtype=torch.bool),
        )

    def keep(self, rows: Tensor) -> "Runs":
        """Only the runs at these positions: a mask would be waited for at each field."""
        return Runs(**{name: value[rows] for name, value in vars(self).items()})

    def step(self, model: nn.Module, budget: Budget, momentum: float) -> None:
        """One step along the gradient and along the step before."""
        step = self.step_size[:, None, None, None] * budget.norm.steepest_ascent(self.gradient)
        ahead = budget.project(self.x, self.point + step)
        inertia = (1 - momentum) * (self.point - self.previous)
        moved = self.point + momentum * (ahead - self.point) + inertia
        self.previous, self.point = self.point, budget.project(self.x, moved)
        loss, self.margin, self.gradient = _loss_margin_gradient(
            model, self.point, self.y, self.target
        )
        self.increases = self.increases + (loss > self.loss)
        self.loss, better = loss, loss > self.best_loss
        self.best_point = _where(better, self.point, self.best_point)
        self.best_gradient = _where(better, self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def checkpoint(self, window: int) -> None:
        """Halve the step size and go back to the best point where the loss grew too seldom.

        In the last ``window`` steps.
        """
        stalled = ~self.halved & (self.best_loss <= self.checkpoint_loss)
        self.halved = stalled | (self.increases <= RHO * window)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.point = _where(self.halved, self.best_point, self.point)
        self.gradient = _where(self.halved, self.best_gradient, self.gradient)
        self.increases, self.checkpoint_loss = torch.zeros_like(self.increases), self.best_loss


def _where(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], first, second)


def _loss_margin_gradient(
    model: nn.Module, point: Tensor, y: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(M,), (M,), (M, 3, H, W)."""
    point = point.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = attached_logits(model, point)
        loss = target_loss(logits, y, target)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return loss.detach(), margin_loss(logits.detach(), y), gradient


def auto_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targets: Tensor,
    start: Tensor,
    budget: Budget,
    *,
    steps: int,
    step_size: float = STEP_SIZE,
) -> Tensor:
    """APGD with one run for each image and row of ``targets``.

    Args:
        model: returns logits; in eval mode, its parameters frozen.
        x: (B, 3, H, W).
        y: (B,).
        targets: (R, B) target classes, or CROSS_ENTROPY.
        start: (B, 3, H, W) where the runs begin.
        budget: one for all images.
        steps: gradient steps.
        step_size: the first one, relative to ε.

    Returns:
        For each image the visited point of the largest margin loss. An image leaves with all its
        runs once that point is adversarial in float32.
    """
    best, best_margin = start.clone(), x.new_full((len(x),), -torch.inf)
    active = torch.arange(len(x), device=x.device)
    losses = len(targets)
    runs = Runs.start(
        model,
        x.repeat(losses, 1, 1, 1),
        y.repeat(losses),
        targets.flatten(),
        start.repeat(losses, 1, 1, 1),
        step_size * budget.eps,
    )
    window, shortest, shrink = (max(int(fraction * steps), 1) for fraction in (0.22, 0.06, 0.03))
    next_checkpoint = window
    for step in range(steps + 1):
        if step > 0:
            runs.step(model, budget, momentum=1 if step == 1 else MOMENTUM)
        row_of = torch.arange(len(runs.y), device=x.device).view(losses, -1)  # (R, A)
        margin, run = runs.margin.view(losses, -1).max(0)  # (A,): of an image's runs the best
        point = runs.point[row_of.gather(0, run[None]).squeeze(0)]
        improved = keep_worse(point, margin, active, best, best_margin)
        promising = (improved & (margin > EARLY_STOP_MARGIN)).nonzero().squeeze(1)
        if len(promising):
            candidates = active[promising]
            failed = torch.ones_like(improved)
            failed[promising] = ~is_adversarial(model, best[candidates], y[candidates])
            left = failed.nonzero().squeeze(1)
            runs, active = runs.keep(row_of[:, left].flatten()), active[left]
            if not len(active):
                break
        if step == next_checkpoint:
            runs.checkpoint(window)
            window = max(window - shrink, shortest)
            next_checkpoint += window
    return best


def _other_classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, K) classes by their logits, the likeliest other class first and y last."""
    return predict_logits(model, x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)


@attack("APGD", "ensemble", steps="aa_steps", starts_from="survivors")
def apgd(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """Auto-PGD (arXiv:2003.01690) on the margins and on the cross-entropy: the lean ensemble.

    `aa_steps` iterations on the margin to each of the `targets` likeliest other classes and on the
    cross-entropy, then a few in float32.
    """
    start = budget.random_start(x, noise(budget.norm.noise, SAMPLE))
    others = _other_classes(model, x, y)
    targeted = others[:, : min(p.targets, others.shape[1] - 1)].T  # (T, B)
    losses = torch.cat([targeted, torch.full_like(targeted[:1], CROSS_ENTROPY)])  # (T + 1, B)
    with frozen_eval_mode(model):
        best = start.clone()
        # No more runs at a time than there are images: the memory that the caller allowed for.
        for i in torch.arange(len(x), device=x.device).chunk(len(losses)):
            best[i] = auto_pgd(model, x[i], y[i], losses[:, i], start[i], budget, steps=p.aa_steps)
        if not torch.is_autocast_enabled(x.device.type):
            return best
        left = (~is_adversarial(model, best, y)).nonzero().squeeze(1)
        if len(left):
            with torch.autocast(x.device.type, enabled=False):
                best[left] = auto_pgd(
                    model,
                    x[left],
                    y[left],
                    _other_classes(model, best[left], y[left])[:, :1].T,  # (1, M)
                    best[left],
                    budget,
                    steps=FLOAT32_STEPS,
                    step_size=FLOAT32_STEP_SIZE,
                )
    return best
