"""The optimization: learning rate schedule, parameter groups, gradient clipping, average of weights."""

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.core.params import TrainingParams
from stages.models.batchnorm import convert_sync_batchnorm
from stages.models.classifier import Classifier


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Fraction of the peak learning rate: linear warm-up over the first ``warmup`` of all steps, then a cosine to zero."""
    first = warmup * total
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / (total - first)))


def make_optimizer(model: Classifier, p: TrainingParams) -> torch.optim.Optimizer:
    """SGD or AdamW: no weight decay of norms and biases, a learning rate of their own for the layers before the head."""
    head = model.head + "."
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            lr = p.lr if name.startswith(head) else p.lr * p.backbone_lr
            groups.setdefault((lr, p.weight_decay if parameter.ndim > 1 else 0.0), []).append(
                parameter
            )
    settings = [
        {"params": members, "lr": lr, "weight_decay": decay}
        for (lr, decay), members in groups.items()
    ]
    if p.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)


class Learner:
    """A model with all that updates its weights: optimizer, schedule and, with ``ema``, the exponential moving average.

    Attributes:
        model: what to train; it may span processes.
        module: the classifier itself, for what must not exchange gradients.
        optimizer: of the weights.
    """

    def __init__(self, fabric: Fabric, model: Classifier, p: TrainingParams, steps: int) -> None:
        """steps: of the whole training."""
        model.freeze(p.freeze)
        if fabric.world_size > 1:
            convert_sync_batchnorm(model)
        self._fabric, self._clip_norm = fabric, p.clip_norm
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
        self._fabric.backward(loss)

    def step(self) -> None:
        """Update the weights."""
        if self._clip_norm:
            self._fabric.clip_gradients(
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
