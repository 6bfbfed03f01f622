"""BatchNorm over a batch that is divided among processes: as if one process had all of it.

torch's SyncBatchNorm does this on GPUs only, this one wherever processes can exchange tensors.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes.

    The gradients are summed, too: the loss of each process depends on the parts of all.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class Synchronized(nn.BatchNorm2d):
    """Before a class of BatchNorm: training statistics of all processes together, the same state.

    timm's BatchNormAct2d drops and activates what it normalized, and so does this then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        wide = x.to(self.weight.dtype)  # (B, C, H, W); sums in bfloat16 are too imprecise
        count = _SumOverProcesses.apply(wide.new_tensor(wide.numel() / wide.shape[1]))
        mean = _SumOverProcesses.apply(wide.sum((0, 2, 3))) / count  # (C,)
        centered = wide - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply(centered.square().sum((0, 2, 3))) / count  # (C,)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        y = (centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)
        if hasattr(self, "act"):
            return self.act(self.drop(y))  # type: ignore[operator]
        return y


def convert_sync_batchnorm(model: nn.Module) -> None:
    """Make every BatchNorm of the model count the other processes' images too."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            kind: Any = type(layer)
            layer.__class__ = type(f"Synchronized{kind.__name__}", (Synchronized, kind), {})


def revert_sync_batchnorm(model: nn.Module) -> None:
    """Undo `convert_sync_batchnorm`: for a model that is used in one process, in eval mode."""
    for layer in model.modules():
        if isinstance(layer, Synchronized):
            layer.__class__ = type(layer).__bases__[1]
