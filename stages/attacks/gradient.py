"""Gradient steps inside a ball: what attacks, training and validation share.

One contract: ``f(model, x, y, budget, ...) -> x_adv`` with x and x_adv float32 (B, 3, H, W) in
[0, 1], y class indices (B,), and a model that returns logits (B, K). The model is left as it was.
Randomness comes in as ``noise``, uniform in [-1, 1] and shaped like x, never from a global
generator: the same inputs give the same x_adv.

A GPU falls idle when Python waits for its results, which it does for every value that it asks for
and for every boolean mask, ``x[mask]``, whose number of rows it has to know. Therefore the loops
choose by ``torch.where``, and ask once a step, with one ``nonzero``, which images are left.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.norms import Budget
from stages.models.inference import attached_logits, frozen_eval_mode, predict_logits

Eps = TypeVar("Eps", float, Tensor)


def pgd_step_size(eps: Eps, steps: int) -> Eps:
    """2.5 eps / steps: reaches any point of the ball and moves along its boundary (1706.06083)."""
    return 2.5 * eps / steps


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of another class minus that of class y: (B, K), (B,) -> (B,).

    Carlini and Wagner, arXiv:1608.04644. Positive for a misclassified image.
    """
    label = logits.gather(1, y[:, None])  # (B, 1)
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)  # (B,)
    return other - label.squeeze(1)


def is_adversarial(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    """Whether each image is misclassified, in float32: (B, 3, H, W), (B,) -> (B,) bool."""
    return margin_loss(predict_logits(model, x_adv), y) > 0


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), cross-entropy (B,) and its gradient at x (B, 3, H, W).

    The gradient is taken with respect to the input alone, and of the sum over the batch, so that
    an image's gradient doesn't depend on its batch. It is zero where the model isn't
    differentiable.

    Args:
        model: returns logits.
        x: (B, 3, H, W).
        y: class indices (B,), or their probabilities (B, K).
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = attached_logits(model, x)
        loss = F.cross_entropy(logits, y, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return logits.detach(), loss.detach(), gradient


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (B, 3, H, W) of each image's margin loss at x (B, 3, H, W); y: (B,)."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(margin_loss(attached_logits(model, x), y).sum(), x)[0]


def keep_worse(
    x_adv: Tensor, margin: Tensor, active: Tensor, best: Tensor, best_margin: Tensor
) -> Tensor:
    """Put the points with a larger margin loss in the place of the best ones so far.

    Args:
        x_adv: (M, 3, H, W) points for the images at the positions ``active``.
        margin: (M,) margin loss there.
        active: (M,) positions, each once.
        best: (B, 3, H, W), changed in place.
        best_margin: (B,) margin loss of ``best``, changed in place.

    Returns:
        (M,) whether the point was better.
    """
    improved = margin > best_margin[active]
    best[active] = torch.where(improved[:, None, None, None], x_adv, best[active])
    best_margin[active] = torch.where(improved, margin, best_margin[active])
    return improved


def fgsm(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """Fast gradient sign method: one step of size eps (Goodfellow et al., arXiv:1412.6572)."""
    with frozen_eval_mode(model):
        _, _, gradient = loss_and_gradient(model, x, y)
    return budget.project(x, x + budget.eps * budget.norm.steepest_ascent(gradient))


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    noise: Tensor | None = None,
    *,
    alpha: float | Tensor,
    steps: int,
    early_stop_margin: float | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al., arXiv:1706.06083) on the cross-entropy.

    Args:
        model: returns logits.
        x: (B, 3, H, W).
        y: (B,).
        budget: its eps is a number, or one for each image, (B, 1, 1, 1).
        noise: leads to the start; None: starts at x itself, which is BIM (arXiv:1607.02533).
        alpha: step size, a number or (B, 1, 1, 1).
        steps: gradient steps.
        early_stop_margin: an image leaves the batch once its margin loss is that large; None: all
            images take all steps.

    Returns:
        For each image the visited point of the largest margin loss, the last point included: an
        iterate that was misclassified is never lost.
    """
    best, best_margin = x.clone(), x.new_full((len(x),), -torch.inf)
    active = torch.arange(len(x), device=x.device)  # positions of the images that still take steps
    eps, alpha = (
        torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x), 1, 1, 1)
        for value in (budget.eps, alpha)
    )
    norm = budget.norm
    point = x if noise is None else norm.random_start(x, eps, noise)
    with frozen_eval_mode(model):
        for step in range(steps + 1):
            if step < steps:
                logits, _, gradient = loss_and_gradient(model, point, y[active])
            else:
                with torch.no_grad():
                    logits = model(point)
            margin = margin_loss(logits, y[active])
            keep_worse(point, margin, active, best, best_margin)
            if step == steps:
                break
            if early_stop_margin is not None:
                left = (margin < early_stop_margin).nonzero().squeeze(1)
                active, point, gradient = active[left], point[left], gradient[left]
                if not len(active):
                    break
            moved = point + alpha[active] * norm.steepest_ascent(gradient)
            point = norm.project(x[active], moved, eps[active])
    return best
