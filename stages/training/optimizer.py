"""How the weights are updated: learning rate, optimizer, clipping, moving average, and AWP."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.core.params import TrainingParams
from stages.models.batchnorm import convert_sync_batchnorm
from stages.models.classifier import Classifier


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Fraction of the peak learning rate: linear warm-up over ``warmup`` of all steps, then cosine.

    The cosine ends at zero.
    """
    first = warmup * total
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / (total - first)))


def make_optimizer(model: Classifier, p: TrainingParams) -> torch.optim.Optimizer:
    """SGD or AdamW of the parameters that are not frozen.

    Norms and biases have no weight decay; the layers before the head have their own learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            lr = p.lr if name.startswith(model.head + ".") else p.lr * p.backbone_lr
            decay = p.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    settings = [
        {"params": members, "lr": lr, "weight_decay": decay}
        for (lr, decay), members in groups.items()
    ]
    if p.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)


class Learner:
    """A model with all that updates its weights.

    Attributes:
        fabric: device, precision and processes.
        model: what to train; it may span processes.
        module: the classifier in it, for what must not exchange gradients.
        optimizer: of the weights.
    """

    def __init__(self, fabric: Fabric, model: Classifier, p: TrainingParams, steps: int) -> None:
        """``steps``: of the whole training."""
        model.freeze(p.freeze)
        if fabric.world_size > 1:
            convert_sync_batchnorm(model)
        self.fabric, self._clip_norm = fabric, p.clip_norm
        self.model, self.optimizer = fabric.setup(model, make_optimizer(model, p))
        self.module: Classifier = self.model.module
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps, p.warmup)
        )
        ema = get_ema_multi_avg_fn(p.ema)
        self._average = (
            AveragedModel(self.module, multi_avg_fn=ema, use_buffers=True) if p.ema else None
        )

    @property
    def eval_model(self) -> Classifier:
        """The classifier to validate and to keep: with the averaged weights if there are any."""
        if self._average is None:
            return self.module
        assert isinstance(self._average.module, Classifier)
        return self._average.module

    @property
    def lr(self) -> float:
        """Learning rate of the head at the next step."""
        return self.optimizer.param_groups[-1]["lr"]

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)

    def step(self) -> None:
        """Update the weights."""
        if self._clip_norm:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self._clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.module)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "average": self._average.state_dict() if self._average is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what ``state_dict`` gave."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def all_reduce(fabric: Fabric, values: Tensor, operation: str) -> Tensor:
    """The values of all processes, reduced elementwise."""
    result = fabric.all_reduce(values, reduce_op=operation)
    assert isinstance(result, Tensor)
    return result


@contextmanager
def adversarial_weights(
    fabric: Fabric,
    model: nn.Module,
    loss_of: Callable[[nn.Module], tuple[Tensor, Tensor]],
    *,
    gamma: float,
) -> Iterator[None]:
    """Inside, the weights are where the loss is larger: adversarial weight perturbation (AWP).

    Wu et al., arXiv:2004.05884. Each layer's weights, not norms and biases, are moved along the
    gradient by ``gamma`` times their norm (0: not at all); afterwards they are restored to the bit.

    Args:
        fabric: of the training.
        model: whose weights are moved.
        loss_of: a model -> its loss () and logits.
        gamma: relative size.
    """
    if not gamma:
        yield
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    saved = [weight.detach().clone() for weight in weights]
    buffers = [buffer.clone() for buffer in model.buffers()]
    with fabric.autocast():
        loss, _ = loss_of(model)
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        # BatchNorm's statistics must not count this pass.
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for weight, local_gradient in zip(weights, gradients, strict=True):
            gradient = all_reduce(fabric, local_gradient, "mean")
            weight.add_(gradient * (gamma * weight.norm() / (gradient.norm() + 1e-20)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)
