"""The methods of adversarial training: how each perturbs a batch, and which loss it then minimizes.

To add one, write a class here and name it in METHODS and in the schema (`params.TrainAdvParams.method`).

Losses are one number for each image, so that the loop's class weights count for all of them; their cross-entropy is the loop's
``criterion``, so that label smoothing counts, too. The model is called once, on x and x_adv together where both are needed:
BatchNorm then sees the mixture, as later in use.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call

from stages.attacks import perturbations
from stages.attacks.perturbations import (
    loss_and_gradient,
    normalize_noise,
    project,
    random_start,
    steepest_ascent,
)
from stages.core.params import TrainAdvParams
from stages.models.inference import frozen_eval_mode
from stages.training.loop import Criterion, TrainingMethod, reduced


class AdversarialTraining(TrainingMethod):
    """Training on adversarial examples within ``eps`` of ``norm``; optionally with adversarial weight perturbation."""

    needs_noise = True

    def __init__(self, p: TrainAdvParams, *, norm: str, eps: float) -> None:
        self.p, self.norm = p, norm
        self.eps, self.eps_ramp, self.clean_fraction = eps, p.eps_ramp, p.clean_share

    def weight_perturbation(
        self, fabric: Fabric, model: nn.Module, loss: Callable[[nn.Module], Tensor]
    ) -> AbstractContextManager[None]:
        """AWP where ``train_adv.awp`` asks for it."""
        return (
            adversarial_weight_perturbation(fabric, model, loss, gamma=self.p.awp)
            if self.p.awp
            else nullcontext()
        )


class FGSM(AdversarialTraining):
    """One step of size eps (Goodfellow et al., arXiv:1412.6572)."""

    needs_noise = False

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """x_adv (B, 3, H, W)."""
        return perturbations.fgsm(model, x, y, eps, norm=self.norm)


class FGSMRS(AdversarialTraining):
    """One step of ``alpha_rel`` (1.25 in the paper) times eps from a random start (Wong et al., arXiv:2001.03994)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """x_adv (B, 3, H, W)."""
        return last_pgd_iterate(
            model, x, y, eps, noise, alpha_rel=self.p.alpha_rel, steps=1, norm=self.norm
        )


class NFGSM(AdversarialTraining):
    """N-FGSM: noise of twice the budget, one step, and no projection to the ball (de Jorge et al., arXiv:2202.01181).

    Leaving the ball (by up to eps + alpha) is what prevents catastrophic overfitting: for training only, not an attack.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """x_adv (B, 3, H, W)."""
        start = (x + 2 * eps * normalize_noise(noise, norm=self.norm)).clamp(0, 1)
        with frozen_eval_mode(model):
            _, _, gradient = loss_and_gradient(model, start, y)
        return (start + self.p.alpha_rel * eps * steepest_ascent(gradient, norm=self.norm)).clamp(
            0, 1
        )


class PGD(AdversarialTraining):
    """The last iterate of PGD (Madry et al., arXiv:1706.06083)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """x_adv (B, 3, H, W)."""
        return last_pgd_iterate(
            model, x, y, eps, noise, alpha_rel=self.p.alpha_rel, steps=self.p.steps, norm=self.norm
        )


class TRADES(AdversarialTraining):
    """CE(x) + beta KL(x || x_adv): correct on x, and the same prediction on x_adv (Zhang et al., arXiv:1901.08573)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """PGD on the divergence from the model's own prediction on x, which is computed once.

        The cross-entropy against that prediction differs from the divergence by a constant: the gradient is the same.
        """
        with frozen_eval_mode(model), torch.no_grad():
            prediction = model(x).softmax(1)  # (B, K)
        alpha_rel, steps = self.p.alpha_rel, self.p.steps
        return last_pgd_iterate(
            model, x, prediction, eps, noise, alpha_rel=alpha_rel, steps=steps, norm=self.norm
        )

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,), logits of x_adv (B, K)."""
        logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
        return criterion(logits, y) + self.p.beta * kl_divergence(logits, logits_adv), logits_adv


class MART(PGD):
    """CE(x_adv) - log(1 - p_other(x_adv)) + beta (1 - p_y(x)) KL(x || x_adv): misclassified images weigh more.

    p_other is the largest probability of another class. Wang et al., Improving adversarial robustness requires revisiting
    misclassified examples, ICLR 2020.
    """

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, criterion: Criterion
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,), logits of x_adv (B, K)."""
        logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
        other = logits_adv.scatter(1, y[:, None], -torch.inf).argmax(
            1, keepdim=True
        )  # (B, 1): the likeliest other class
        # -log(1 - p_other), from the logits of all but that class.
        margin = logits_adv.logsumexp(1) - logits_adv.scatter(1, other, -torch.inf).logsumexp(1)
        misclassification = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)
        divergence = kl_divergence(logits, logits_adv)
        return criterion(
            logits_adv, y
        ) + margin + self.p.beta * misclassification * divergence, logits_adv


class Free(AdversarialTraining):
    """Free adversarial training (Shafahi et al., arXiv:1904.12843): one gradient updates the weights and the perturbation.

    Each batch is replayed ``steps`` times. The paper starts from the perturbation of the batch before; here every batch
    starts from noise, as one step should (arXiv:2001.03994).
    """

    def __init__(self, p: TrainAdvParams, *, norm: str, eps: float) -> None:
        super().__init__(p, norm=norm, eps=eps)
        self.replays = p.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The image at x + eps * noise."""
        return random_start(x, eps, noise, norm=self.norm)

    def update_noise(self, noise: Tensor, gradient: Tensor) -> Tensor:
        """The noise of the next replay: one step along the gradient of the training loss at x_adv."""
        return normalize_noise(noise, norm=self.norm) + self.p.alpha_rel * steepest_ascent(
            gradient, norm=self.norm
        )


METHODS: dict[str, type[AdversarialTraining]] = {
    "fgsm": FGSM,
    "fgsm_rs": FGSMRS,
    "nfgsm": NFGSM,
    "pgd": PGD,
    "trades": TRADES,
    "mart": MART,
    "free": Free,
}


def make_training_method(p: TrainAdvParams, *, norm: str, eps: float) -> AdversarialTraining:
    """The method that section ``train_adv`` names, within eps of ``norm``."""
    return METHODS[p.method](p, norm=norm, eps=eps)


def last_pgd_iterate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: Tensor,
    *,
    alpha_rel: float,
    steps: int,
    norm: str,
) -> Tensor:
    """The last of some steps of alpha_rel * eps on the cross-entropy, from a random start; y: (B,), or probabilities (B, K)."""
    point = random_start(x, eps, noise, norm=norm)
    with frozen_eval_mode(model):
        for _ in range(steps):
            _, _, gradient = loss_and_gradient(model, point, y)
            point = project(
                x, point + alpha_rel * eps * steepest_ascent(gradient, norm=norm), eps, norm=norm
            )
    return point


def kl_divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the predictions on x_adv from those on x: (B, K), (B, K) -> (B,)."""
    return F.kl_div(
        logits_adv.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


class _WithBuffers(nn.Module):
    """A model that reads and updates other buffers than its own."""

    def __init__(self, model: nn.Module, buffers: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = partial(functional_call, model, buffers)

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x)


@contextmanager
def adversarial_weight_perturbation(
    fabric: Fabric, model: nn.Module, loss: Callable[[nn.Module], Tensor], *, gamma: float
) -> Iterator[None]:
    """AWP (Wu et al., arXiv:2004.05884): inside, the weights are where the loss is larger.

    Each layer's weights, not norms and biases, are moved along the gradient of the loss by ``gamma`` times their norm;
    afterwards they are restored to the bit. BatchNorm's statistics don't count the extra pass.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    saved = [weight.detach().clone() for weight in weights]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = torch.autograd.grad(loss(_WithBuffers(model, buffers)), weights)
    try:
        with torch.no_grad():
            for weight, local_gradient in zip(weights, gradients, strict=True):
                gradient = reduced(fabric, local_gradient, "mean")
                weight.add_(gradient * (gamma * weight.norm() / (gradient.norm() + 1e-20)))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)
