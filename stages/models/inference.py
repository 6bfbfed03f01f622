"""A trained model in use: evaluated and differentiated without being changed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, eval mode and no gradients of parameters; afterwards everything as before.

    In train mode, an attack would change BatchNorm's running statistics, and the result for an
    image would depend on its batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def attached_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) of x (B, 3, H, W), attached to x even where the model has no gradient.

    A model that rounds, encodes or compresses its input isn't differentiable, and one that hands it
    to NumPy or to an image library refuses an input that requires a gradient. Their gradient is
    zero here: attacks that follow gradients stay where they are, those without gradients still run,
    and it is for the diagnostics to say so (D5).
    """
    try:
        logits = model(x)
    except RuntimeError as error:
        if "numpy()" not in str(error):  # torch: "Can't call numpy() on Tensor that requires grad"
            raise
        logits = model(x.detach())
    if logits.requires_grad or not x.requires_grad:
        return logits
    return logits + 0 * x.flatten(1).sum(1, keepdim=True)


def predict_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) of x (B, 3, H, W) in eval mode and in float32, also under autocast."""
    with frozen_eval_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return model(x)
