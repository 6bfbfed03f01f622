"""Gradient perturbations inside a ball: the steps that attacks, training and validation share.

One contract: ``f(model, x, y, eps, ...) -> x_adv`` with x, x_adv (B, 3, H, W) float32 in [0, 1], y (B,) class indices, eps in
the same pixel units (linf: of every pixel value; l2: Euclidean length of the change of the whole image), and a model that
returns logits (B, K). The model is left as it was. Randomness comes in as ``noise``,
uniform in [-1, 1] and shaped like x, never from a global generator: the same inputs give the same x_adv.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.inference import frozen_eval_mode


def length(delta: Tensor) -> Tensor:
    """Euclidean length of each image's change: (B, 3, H, W) -> (B, 1, 1, 1)."""
    return delta.flatten(1).norm(dim=1)[:, None, None, None]


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor, norm: str = "linf") -> Tensor:
    """A point that is an image and within eps of x: the nearest one for linf; for l2 scaled back to the ball, then clipped."""
    if norm == "linf":
        return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)
    delta = x_adv - x
    return (x + delta * (eps / length(delta).clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)


def ascent(gradient: Tensor, norm: str) -> Tensor:
    """The direction of length 1 in which the linearised loss grows fastest: the sign for linf, the gradient itself for l2."""
    return gradient.sign() if norm == "linf" else gradient / length(gradient).clamp_min(1e-12)


def normalize_noise(noise: Tensor, norm: str) -> Tensor:
    """Noise (B, 3, H, W) cut off at ±1 for linf, scaled to length 1 for l2."""
    return noise.clamp(-1, 1) if norm == "linf" else noise / length(noise).clamp_min(1e-12)


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), cross-entropy (B,) and its gradient at x (B, 3, H, W); y (B,) classes or (B, K) their probabilities.

    The gradient is taken on the input alone, and of the sum, so that an image's gradient doesn't depend on its batch.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        loss = F.cross_entropy(logits, y, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return logits.detach(), loss.detach(), gradient


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf") -> Tensor:
    """One step of size eps, for linf along the gradient's sign (Goodfellow et al., arXiv:1412.6572)."""
    with frozen_eval_mode(model):
        _, _, gradient = loss_and_gradient(model, x, y)
    return project(x + eps * ascent(gradient, norm), x, eps, norm)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    noise: Tensor | None = None,
    *,
    alpha: float | Tensor,
    steps: int,
    norm: str = "linf",
    early_stop_margin: float | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al., arXiv:1706.06083), from x + eps * noise; without noise: BIM (1607.02533).

    Returns for every image the visited point, the last one included, at which a wrong class leads by most: so an iterate that
    fooled the model is never lost. eps and alpha may be (B, 1, 1, 1), a budget for each image. With ``early_stop_margin`` an
    image leaves the batch once its margin loss is that large.
    """
    best, best_lead = x.clone(), x.new_full((len(x),), -torch.inf)
    todo = torch.arange(len(x), device=x.device)
    eps, alpha = (torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x), 1, 1, 1) for value in (eps, alpha))
    point = x if noise is None else project(x + eps * normalize_noise(noise, norm), x, eps, norm)
    with frozen_eval_mode(model):
        for step in range(steps + 1):
            if step < steps:
                logits, _, gradient = loss_and_gradient(model, point, y[todo])
            else:
                with torch.no_grad():
                    logits = model(point)
            ahead = margin_loss(logits, y[todo])
            better = ahead > best_lead[todo]
            best[todo[better]], best_lead[todo[better]] = point[better], ahead[better]
            if step == steps:
                break
            if early_stop_margin is not None:
                going = ahead < early_stop_margin
                todo, point, gradient = todo[going], point[going], gradient[going]
                if not len(todo):
                    break
            point = project(point + alpha[todo] * ascent(gradient, norm), x[todo], eps[todo], norm)
    return best


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """How many logits the strongest wrong class is ahead of class y: (B, K), (B,) -> (B,); positive means fooled."""
    own = logits.gather(1, y[:, None])  # (B, 1)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)  # (B,)
    return wrong - own.squeeze(1)
