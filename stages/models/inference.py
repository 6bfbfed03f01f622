"""Running a trained model without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; every module's mode and every requires_grad as before after it.

    BatchNorm in train mode would let the attack move its running statistics and tie an image to its batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def predict_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) in eval mode and full precision, whatever the attack was crafted in."""
    with frozen_eval_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return model(x)
