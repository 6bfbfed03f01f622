"""The methods of adversarial training: how each perturbs a batch, and what it then minimises.

A perturbation is ``perturb(model, x, y, eps, noise) -> x_adv`` as in perturbations.py. A loss is ``losses(model, x, x_adv, y,
criterion) -> losses (B,), logits of x_adv (B, K)``: one number for each picture, so that the loop's class weights count for all
of it; its cross-entropy is the loop's ``criterion``, so that label smoothing does too. The model is called once, on x and x_adv
together where both are needed: BatchNorm then sees the mixture, as later in use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call

from stages.attacks.perturbations import ascent, fgsm, loss_and_gradient, normalize_noise, project
from stages.core.params import TrainAdv
from stages.models.inference import frozen_eval_mode
from stages.training.loop import Criterion, TrainingMethod


def of(p: TrainAdv, norm: str, eps: float) -> TrainingMethod:
    """What ``train_adv`` asks for, within the budget ``eps`` of ``norm``."""
    perturb: dict[str, Callable[..., Tensor]] = {
        "fgsm": lambda model, x, y, eps, noise, *, norm, alpha_rel: fgsm(model, x, y, eps, norm=norm),
        "fgsm_rs": partial(pgd_perturb, steps=1),
        "nfgsm": nfgsm,
        "pgd": partial(pgd_perturb, steps=p.steps),
        "trades": partial(kl_pgd_perturb, steps=p.steps),
        "mart": partial(pgd_perturb, steps=p.steps),
        "free": free,
    }
    losses = {"trades": partial(trades_losses, beta=p.beta), "mart": partial(mart_losses, beta=p.beta)}
    return TrainingMethod(
        partial(perturb[p.method], norm=norm, alpha_rel=p.alpha_rel),
        eps=eps,
        eps_ramp=p.eps_ramp,
        clean_share=p.clean_share,
        replays=p.steps if p.method == "free" else 1,
        **({"losses": losses[p.method]} if p.method in losses else {}),
        **({"moved_weights": partial(moved_weights, size=p.awp)} if p.awp else {}),
    )


def nfgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor, *, norm: str = "linf", alpha_rel: float = 1.0
) -> Tensor:
    """N-FGSM: noise of twice the budget, one step, and no clipping to the ball (de Jorge et al., arXiv:2202.01181).

    Leaving the ball (by up to eps + alpha) is what prevents catastrophic overfitting: for training only, not an attack.
    """
    start = (x + 2 * eps * normalize_noise(noise, norm)).clamp(0, 1)
    with frozen_eval_mode(model):
        _, _, gradient = loss_and_gradient(model, start, y)
    return (start + alpha_rel * eps * ascent(gradient, norm)).clamp(0, 1)


def pgd_perturb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: Tensor,
    *,
    norm: str = "linf",
    alpha_rel: float,
    steps: int,
) -> Tensor:
    """The last of some steps of alpha_rel * eps up the cross-entropy, from a random start (PGD, arXiv:1706.06083).

    One step is FGSM-RS (Wong et al., arXiv:2001.03994, alpha_rel 1.25). y: classes (B,), or probabilities (B, K).
    """
    point = project(x + eps * normalize_noise(noise, norm), x, eps, norm)
    with frozen_eval_mode(model):
        for _ in range(steps):
            _, _, gradient = loss_and_gradient(model, point, y)
            point = project(point + alpha_rel * eps * ascent(gradient, norm), x, eps, norm)
    return point


def kl_pgd_perturb(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor, **settings: Any) -> Tensor:
    """``ascend`` away from the model's own answer to x, which is asked for once (TRADES, Zhang et al., arXiv:1901.08573).

    The cross-entropy against that answer differs from the divergence by a constant: the gradient is the same.
    """
    with frozen_eval_mode(model), torch.no_grad():
        answer = model(x).softmax(1)  # (B, K)
    return pgd_perturb(model, x, answer, eps, noise, **settings)


def free(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor, *, norm: str = "linf", alpha_rel: float = 1.0
) -> Tensor:
    """Free adversarial training (Shafahi et al., arXiv:1904.12843): the gradient that moves the weights moves the picture too.

    The perturbation is eps * ``noise``; the backward pass of the training step moves ``noise`` itself on, for the next replay
    of the batch. The paper goes on from the batch before; here every batch starts at random, as one step should (2001.03994).
    """
    start = normalize_noise(noise, norm)

    def move_on(gradient: Tensor) -> None:
        noise.copy_(start + alpha_rel * ascent(gradient, norm))

    x_adv = project(x + eps * start, x, eps, norm).requires_grad_(True)
    x_adv.register_hook(move_on)
    return x_adv


def divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the answers to x_adv from those to x: (B, K), (B, K) -> (B,)."""
    return F.kl_div(logits_adv.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def trades_losses(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Right on x, and the same answer on x_adv: CE(x) + beta KL(x || x_adv) (Zhang et al., arXiv:1901.08573)."""
    logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
    return criterion(logits, y) + beta * divergence(logits, logits_adv), logits_adv


def mart_losses(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion, *, beta: float
) -> tuple[Tensor, Tensor]:
    """CE(x_adv) - log(1 - p_strongest_wrong(x_adv)) + beta (1 - p_y(x)) KL(x || x_adv): what is wrong already counts more.

    Wang et al., Improving adversarial robustness requires revisiting misclassified examples, ICLR 2020.
    """
    logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
    wrong = logits_adv.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)  # (B, 1): the strongest wrong class
    # log(1 - p_wrong) is the log of the others' share.
    margin = logits_adv.logsumexp(1) - logits_adv.scatter(1, wrong, -torch.inf).logsumexp(1)
    doubt = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    return criterion(logits_adv, y) + margin + beta * doubt * divergence(logits, logits_adv), logits_adv


@contextmanager
def moved_weights(fabric: Fabric, model: nn.Module, loss: Callable[[nn.Module], Tensor], *, size: float) -> Iterator[None]:
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884): inside, weights lie where the loss is higher.

    Each layer's weights, not norms and biases, are moved up the loss by ``size`` times their norm; after it they are the same
    bits as before. BatchNorm's statistics don't count the extra pass.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    saved = [weight.detach().clone() for weight in weights]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = torch.autograd.grad(loss(partial(functional_call, model, buffers)), weights)
    try:
        with torch.no_grad():
            for weight, share in zip(weights, gradients, strict=True):
                gradient = fabric.all_reduce(share, reduce_op="mean")
                weight.add_(gradient * (size * weight.norm() / (gradient.norm() + 1e-20)))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)
