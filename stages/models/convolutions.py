"""Convolutions of few pixels as matrix products, on a CPU.

oneDNN computes a convolution image by image and reads the weights of the layer once for each. Where
an image has few output pixels and the layer many channels, as in the last blocks of a ResNet, one
product over the pixels of all images is several times faster (benchmarks/README.md has a table).
"""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = {1: 16, 3: 4}  # kernel size -> output pixels up to which the product is the faster one


def patches(x: Tensor, kernel: int, stride: int) -> Tensor:
    """The input pixels of every output pixel: (B, H, W, C) -> (B, H', W', kernel² C)."""
    if kernel == 1:
        return x[:, ::stride, ::stride]
    margin = kernel // 2
    x = F.pad(x, (0, 0, margin, margin, margin, margin))
    down, right = (side - 2 * margin for side in x.shape[1:3])
    shifts = product(range(kernel), range(kernel))
    return torch.cat([x[:, i : i + down : stride, j : j + right : stride] for i, j in shifts], -1)


def sum_patches(rows: Tensor, kernel: int, stride: int, height: int, width: int) -> Tensor:
    """The transpose of `patches`: (B, H', W', kernel² C) -> (B, H, W, C)."""
    batch, channels = len(rows), rows.shape[-1] // kernel**2
    margin = kernel // 2
    x = rows.new_zeros(batch, height + 2 * margin, width + 2 * margin, channels)
    shifts = product(range(kernel), range(kernel))
    for (i, j), part in zip(shifts, rows.split(channels, -1), strict=True):
        x[:, i : i + height : stride, j : j + width : stride] += part
    return x[:, margin : margin + height, margin : margin + width]


class _MatmulConvolution(torch.autograd.Function):
    """Autograd alone would copy the weights into another order at every step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        kind, kernel = x.device.type, weight.shape[-1]
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        # (D, C, k, k) -> (D, k² C)
        flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(dtype)
        pixels = patches(x.to(dtype).permute(0, 2, 3, 1), kernel, stride)  # (B, H', W', k² C)
        rows = pixels.reshape(-1, flat.shape[1])  # linear is slow on more than two dimensions
        ctx.save_for_backward(
            rows if ctx.needs_input_grad[1] else None, flat if ctx.needs_input_grad[0] else None
        )
        ctx.shape, ctx.size, ctx.kernel, ctx.stride = x.shape, pixels.shape[:3], kernel, stride
        ctx.dtype = weight.dtype
        return F.linear(rows, flat, None if bias is None else bias.to(dtype))  # (B H' W', D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, flat = ctx.saved_tensors
        outputs = gradients[0]  # (B H' W', D)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            pixels = torch.mm(outputs, flat).view(*ctx.size, -1)
            if ctx.kernel > 1 or ctx.stride > 1:
                pixels = sum_patches(pixels, ctx.kernel, ctx.stride, *ctx.shape[2:])
            of_x = pixels.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            shape = (outputs.shape[1], ctx.kernel, ctx.kernel, ctx.shape[1])
            of_weight = torch.mm(outputs.T, rows).view(shape).to(ctx.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            precise = torch.promote_types(outputs.dtype, torch.float32)
            of_bias = outputs.sum(0, dtype=precise).to(ctx.dtype)
        return of_x, of_weight, of_bias, None


class MatmulConv2d(nn.Conv2d):
    """nn.Conv2d with the same parameters; the same function up to rounding."""

    def is_small(self, size: torch.Size) -> bool:
        """Whether the product is faster on a CPU for an input (B, C, H, W) of that size."""
        height, width = _output_size(size, self.stride[0])
        return height * width <= PIXELS[self.kernel_size[0]]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H', W')."""
        if x.device.type != "cpu" or not self.is_small(x.shape):
            return super().forward(x)
        stride = self.stride[0]
        rows = _MatmulConvolution.apply(x, self.weight, self.bias, stride)  # (B H' W', D)
        return rows.view(len(x), *_output_size(x.shape, stride), -1).permute(0, 3, 1, 2)


def _output_size(size: torch.Size, stride: int) -> tuple[int, int]:
    """H', W' of an input (B, C, H, W) of that size."""
    return (size[2] - 1) // stride + 1, (size[3] - 1) // stride + 1


def use_matmul(model: nn.Module) -> None:
    """Let the convolutions choose at every call, by the size of their input."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _fits(layer):
            layer.__class__ = MatmulConv2d


def revert_matmul(model: nn.Module) -> None:
    """Undo `use_matmul`: torch.fx's fusion knows nn.Conv2d only."""
    for layer in model.modules():
        if type(layer) is MatmulConv2d:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]


def _fits(layer: nn.Conv2d) -> bool:
    """Square kernel of 1 or 3, padded to keep the size, neither dilated nor in groups."""
    kernel = layer.kernel_size[0]
    return (
        kernel in PIXELS
        and layer.kernel_size == (kernel, kernel)
        and layer.padding == (kernel // 2, kernel // 2)
        and layer.stride[0] == layer.stride[1]
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
