"""The methods of adversarial training: how each perturbs a batch, and which loss it minimizes.

To add one, write a class here and name it in METHODS and in `params.TrainAdvParams.method`.

A method returns one loss for each image, because the class weights differ between images. The model
is called once, on x and x_adv together where both are needed: BatchNorm then sees the mixture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.attacks.gradient import fgsm, loss_and_gradient
from stages.core.norms import Budget
from stages.core.params import TrainAdvParams
from stages.models.inference import frozen_eval_mode
from stages.training.epoch import TrainingMethod


class AdversarialTraining(TrainingMethod):
    """What the methods share: training on examples within a budget."""

    needs_noise = True

    def __init__(self, p: TrainAdvParams, budget: Budget) -> None:
        super().__init__(p)
        self.norm, self.eps, self.eps_ramp = budget.norm, budget.eps, p.eps_ramp
        self.alpha_rel, self.steps, self.beta = p.alpha_rel, p.steps, p.beta
        self.clean_fraction, self.awp = p.clean_share, p.awp


class FGSM(AdversarialTraining):
    """One step of size eps (Goodfellow et al., arXiv:1412.6572)."""

    needs_noise = False

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        return fgsm(model, x, y, Budget(self.norm, eps))


class NFGSM(AdversarialTraining):
    """N-FGSM: noise of twice the budget, one step, no projection.

    De Jorge et al., arXiv:2202.01181. Leaving the ball, by up to eps + alpha, is what prevents
    catastrophic overfitting; an attack must not do it.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        start = (x + 2 * eps * self.norm.unit_noise(noise)).clamp(0, 1)
        with frozen_eval_mode(model):
            _, _, gradient = loss_and_gradient(model, start, y)
        step = self.alpha_rel * eps * self.norm.steepest_ascent(gradient)
        return (start + step).clamp(0, 1)


class PGD(AdversarialTraining):
    """The last iterate of PGD (Madry et al., arXiv:1706.06083)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """Steps of alpha_rel * eps from a random start; y: labels (B,) or probabilities (B, K)."""
        point = self.norm.random_start(x, eps, noise)
        with frozen_eval_mode(model):
            for _ in range(self.steps):
                _, _, gradient = loss_and_gradient(model, point, y)
                step = self.alpha_rel * eps * self.norm.steepest_ascent(gradient)
                point = self.norm.project(x, point + step, eps)
        return point


class FGSMRS(PGD):
    """A single step from a random start (Wong et al., arXiv:2001.03994, with alpha_rel = 1.25)."""

    def __init__(self, p: TrainAdvParams, budget: Budget) -> None:
        super().__init__(p.model_copy(update={"steps": 1}), budget)


class TRADES(PGD):
    """CE(x) + beta KL(x || x_adv) (Zhang et al., arXiv:1901.08573).

    That is: correct on x, and the same prediction on x_adv.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """PGD on the divergence from the model's own prediction on x.

        The cross-entropy with respect to that prediction differs from the divergence by a constant:
        the gradient is the same.
        """
        with frozen_eval_mode(model), torch.no_grad():
            prediction = model(x).softmax(1)  # (B, K)
        return super().perturb(model, x, prediction, eps, noise)

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
        divergence = kl_divergence(logits, logits_adv)
        return self.cross_entropy(logits, y) + self.beta * divergence, logits_adv


class MART(PGD):
    """CE(x_adv) - log(1 - p_other(x_adv)) + beta (1 - p_y(x)) KL(x || x_adv).

    p_other is the largest probability of another class; misclassified images weigh more. Wang et
    al., Improving adversarial robustness requires revisiting misclassified examples, ICLR 2020.
    """

    def losses(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
        # The likeliest other class (B, 1).
        other = logits_adv.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
        # -log(1 - p_other), from the logits of all but that class.
        margin = logits_adv.logsumexp(1) - logits_adv.scatter(1, other, -torch.inf).logsumexp(1)
        misclassification = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)
        divergence = kl_divergence(logits, logits_adv)
        boosted = self.cross_entropy(logits_adv, y) + margin
        return boosted + self.beta * misclassification * divergence, logits_adv


class Free(AdversarialTraining):
    """Free adversarial training: one gradient updates the weights and the perturbation.

    Shafahi et al., arXiv:1904.12843. Each batch is replayed ``steps`` times. The paper starts from
    the perturbation of the batch before; here every batch starts from noise, as a single step
    should (arXiv:2001.03994).
    """

    def __init__(self, p: TrainAdvParams, budget: Budget) -> None:
        super().__init__(p, budget)
        self.replays = p.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The image at x + eps * noise."""
        return self.norm.random_start(x, eps, noise)

    def next_noise(self, noise: Tensor, gradient: Tensor) -> Tensor:
        """One step along the gradient of the training loss at x_adv."""
        step = self.alpha_rel * self.norm.steepest_ascent(gradient)
        return self.norm.unit_noise(noise) + step


class GaussianNoise(AdversarialTraining):
    """Gaussian augmentation (Cohen et al., arXiv:1902.02918): for randomized smoothing, no attack.

    Its eps is the standard deviation of the noise, which isn't clipped: the proof of smoothing asks
    for the noise that it is trained with.
    """

    def __init__(self, p: TrainAdvParams, budget: Budget) -> None:
        super().__init__(p, budget)
        self.eps = p.sigma

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Tensor) -> Tensor:
        inside = noise.clamp(-1 + 1e-7, 1 - 1e-7)  # -1 itself would be an infinite number
        return x + eps * 2**0.5 * torch.erfinv(inside)


METHODS: dict[str, type[AdversarialTraining]] = {
    "fgsm": FGSM,
    "fgsm_rs": FGSMRS,
    "nfgsm": NFGSM,
    "pgd": PGD,
    "trades": TRADES,
    "mart": MART,
    "free": Free,
    "noise": GaussianNoise,
}


def make_training_method(p: TrainAdvParams, budget: Budget) -> AdversarialTraining:
    """The method that section ``train_adv`` names, within a budget."""
    return METHODS[p.method](p, budget)


def kl_divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the predictions on x_adv from those on x: (B, K) -> (B,)."""
    log_p, log_q = logits.log_softmax(1), logits_adv.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
