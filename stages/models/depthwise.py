"""Depthwise convolutions in float32 on a CPU, also under autocast.

In bfloat16 oneDNN computes the gradients of those with a stride or a kernel of 5 by its reference
code: up to 73 times as slow as in float32 (benchmarks/README.md has a table).
"""

from typing import Any

import torch
from torch import Tensor, nn


class Float32(nn.Conv2d):
    """Before another class of convolutions: as precise as the weights, whatever autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def use_float32(model: nn.Module) -> None:
    """Let the model's depthwise convolutions compute in float32."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels:
            kind: Any = type(layer)
            layer.__class__ = type(f"Float32{kind.__name__}", (Float32, kind), {})


def revert_float32(model: nn.Module) -> None:
    """Undo `use_float32`: torch.fx's fusion knows nn.Conv2d only."""
    for layer in model.modules():
        if isinstance(layer, Float32):
            layer.__class__ = type(layer).__bases__[1]
