"""A frozen network for attacks on a CPU, its weights converted and reordered once.

Autocast converts weights to bfloat16 at every call, and oneDNN reorders them for its kernels, again
at every call. Here both are done once, and a ReLU is computed by the convolution before it, also
where a residual connection is added between them. The operators are those of torch.compile, which
torch keeps private: `pack` compares the network with the plain one, and falls back to that.
"""

import copy
import operator
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, fx, nn

from stages.models.classifier import Classifier
from stages.models.convolutions import MatmulConv2d, patches, sum_patches
from stages.models.fusion import fuse_batchnorm

ONEDNN = torch.ops.mkldnn
# How oneDNN is asked for an activation: its name, its parameters, a variant.
ACTIVATIONS: dict[str | None, tuple[str, list[float], str]] = {
    None: ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}
# The batch that weights are reordered for, whatever comes first: no result depends on that.
IMAGES = 64
TOLERANCE = 2.0  # times autocast's error


class PackedConv2d(nn.Module):
    """A frozen convolution in bfloat16, differentiable in its input."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)
        self.layer.to(torch.bfloat16)
        self.layer.to(memory_format=torch.channels_last)
        self.padding = [int(margin) for margin in layer.padding]
        self.activation: str | None = None  # what follows: "relu", "relu6" or nothing
        self._packed: dict[str, Tensor] = {}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, D, H', W').

        A residual of that shape is added before the activation, which is a ReLU then.
        """
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return _PackedConvolution.apply(x, residual, self)

    def convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The convolution, the sum and the activation, in bfloat16."""
        layer, activation = self.layer, ACTIVATIONS[self.activation]
        if self._is_matmul(x.shape):
            pixels = patches(x.permute(0, 2, 3, 1), layer.kernel_size[0], layer.stride[0])
            rows = pixels.reshape(-1, pixels.shape[-1])  # (B H' W', k² C)
            weight = self._matrix("forward", len(rows) // len(x))
            if residual is None:
                y = ONEDNN._linear_pointwise(rows, weight, layer.bias, *activation)
            else:
                added = residual.permute(0, 2, 3, 1).reshape(len(rows), -1)  # (B H' W', D)
                y = ONEDNN._linear_pointwise.binary(rows, added, weight, layer.bias, "add").relu_()
            return y.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
        shape = (self.padding, layer.stride, layer.dilation, layer.groups)
        if "forward" not in self._packed:
            self._packed["forward"] = ONEDNN._reorder_convolution_weight(
                layer.weight, *shape, [IMAGES, *x.shape[1:]]
            )
        operands = (self._packed["forward"], layer.bias, *shape)
        if residual is None:
            return ONEDNN._convolution_pointwise(x, *operands, *activation)
        return ONEDNN._convolution_pointwise.binary(x, residual, *operands, "add", 1.0, *activation)

    def differentiate(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Gradient (B, C, H, W) of the input, which has that size, from that of the convolution."""
        layer = self.layer
        if self._is_matmul(size):
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, layer.out_channels)  # (B H' W', D)
            weight = self._matrix("backward", len(rows) // size[0])
            pixels = ONEDNN._linear_pointwise(rows, weight, None, "none", [], "")
            pixels = pixels.view(size[0], *gradient.shape[2:], -1)  # (B, H', W', k² C)
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            if kernel > 1 or stride > 1:
                pixels = sum_patches(pixels, kernel, stride, *size[2:])
            return pixels.permute(0, 3, 1, 2)
        # Positions of the kernel if it moved by single pixels.
        positions = [
            size[2 + axis]
            + 2 * self.padding[axis]
            - layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            for axis in (0, 1)
        ]
        steps = layer.stride
        if layer.groups > 1 and max(steps) > 1:
            # oneDNN has no fast kernel for these: without the stride it has one, and the positions
            # that the stride leaves out have no gradient.
            down, right = steps
            every = gradient.new_zeros(*gradient.shape[:2], *positions)
            every = every.contiguous(memory_format=torch.channels_last)
            every[:, :, ::down, ::right] = gradient
            gradient, steps = every, (1, 1)
        # Pixels at the end of the input that the last position of the kernel misses.
        rest = [(positions[axis] - 1) % steps[axis] for axis in (0, 1)]
        shape = [self.padding, rest, steps, layer.dilation, layer.groups]
        if "backward" not in self._packed:
            self._packed["backward"] = ONEDNN._reorder_convolution_transpose_weight(
                layer.weight, *shape, [IMAGES, *gradient.shape[1:]]
            )
        return ONEDNN._convolution_transpose_pointwise(
            gradient, self._packed["backward"], None, *shape, "none", [], ""
        )

    def _is_matmul(self, size: torch.Size) -> bool:
        return isinstance(self.layer, MatmulConv2d) and self.layer.is_small(size)

    def _matrix(self, direction: str, pixels: int) -> Tensor:
        """The kernel as a matrix (D, k² C), or its transpose for the gradient."""
        if direction not in self._packed:
            flat = self.layer.weight.permute(0, 2, 3, 1).reshape(self.layer.out_channels, -1)
            flat = flat if direction == "forward" else flat.T
            self._packed[direction] = ONEDNN._reorder_linear_weight(
                flat.contiguous(), IMAGES * pixels
            )
        return self._packed[direction]


class _PackedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, layer: PackedConv2d) -> Tensor:
        y = layer.convolve(x, residual)
        ctx.layer, ctx.size, ctx.added = layer, x.shape, residual is not None
        if layer.activation is not None:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if ctx.layer.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, ctx.saved_tensors[0], 0)
        elif ctx.layer.activation == "relu6":
            gradient = torch.ops.aten.hardtanh_backward(gradient, ctx.saved_tensors[0], 0, 6)
        of_x = ctx.layer.differentiate(gradient, ctx.size) if ctx.needs_input_grad[0] else None
        return of_x, gradient if ctx.added else None, None


class TwoPrecisions(nn.Module):
    """A frozen model, and its faster copy in bfloat16, which takes its place under autocast."""

    def __init__(self, model: Classifier, fast: Classifier) -> None:
        super().__init__()
        self.model, self.fast = model, fast

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return (self.fast if torch.is_autocast_enabled(x.device.type) else self.model)(x)


def for_attacks(model: Classifier, fabric: Fabric) -> nn.Module:
    """The same function, up to rounding, in eval mode and frozen, and cheaper to differentiate."""
    fused = fuse_batchnorm(model).requires_grad_(False)
    with fabric.autocast():
        if not torch.is_autocast_enabled(fabric.device.type):
            return fused
    fast = pack(fused) if fabric.device.type == "cpu" else None
    return TwoPrecisions(fused, convert_weights(fast or copy.deepcopy(fused)))


def convert_weights(model: Classifier) -> Classifier:
    """The model, with the weights in bfloat16 that autocast would convert at every call."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(torch.bfloat16)
    return model


def pack(model: Classifier) -> Classifier | None:
    """A copy in bfloat16 of a model without BatchNorm; None, with a line, where torch can't.

    Logits and gradients of random images must be as near to those in float32 as autocast's are: the
    operators are no part of torch's public interface.
    """
    packed = copy.deepcopy(model)
    x = torch.rand(4, 3, model.image_size, model.image_size, generator=torch.Generator())
    try:
        if not isinstance(packed.backbone, fx.GraphModule):
            raise TypeError(f"torch.fx can't trace {model.arch}")
        packed.backbone = pack_layers(packed.backbone)
        precise = _logits_and_gradient(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            plain, fast = (_logits_and_gradient(network, x) for network in (model, packed))
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
    else:
        errors = [
            [(one - other).norm() for one, other in zip(found, precise, strict=True)]
            for found in (plain, fast)
        ]
        if all(mine <= TOLERANCE * autocast for autocast, mine in zip(*errors, strict=True)):
            return packed
        reason = f"expected errors as autocast's {errors[0]}, got {errors[1]}"
    print(f"attacks don't use packed weights: {reason}", file=sys.stderr)
    return None


def _logits_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the gradient (B, 3, H, W) of those of the first class."""
    x = x.clone().requires_grad_(True)
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]


def pack_layers(network: fx.GraphModule) -> fx.GraphModule:
    """Replace the convolutions, each with the ReLU, ReLU6, or sum and ReLU that follows it."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            if not isinstance(layer.padding, str):
                network.set_submodule(name, PackedConv2d(layer))
        elif hasattr(layer, "inplace"):
            setattr(layer, "inplace", False)  # noqa: B010  # outputs of the convolutions are views
    for node in list(network.graph.nodes):
        kind = type(_module(network, node))
        if kind not in (nn.ReLU, nn.ReLU6):
            continue
        before = node.args[0]
        is_sum = kind is nn.ReLU and before.target in (operator.add, operator.iadd)
        summands = before.args if is_sum else (before,)
        convolutions = [each for each in summands if _is_convolution(network, each)]
        if len(before.users) != 1 or not convolutions:
            continue
        convolution = convolutions[0]
        residual = [each for each in summands if each is not convolution]
        _module(network, convolution).activation = "relu" if kind is nn.ReLU else "relu6"
        with network.graph.inserting_before(node):
            inputs = (convolution.args[0], *residual)
            fused = network.graph.call_module(convolution.target, inputs)
        node.replace_all_uses_with(fused)
        for replaced in dict.fromkeys((node, before, convolution)):
            network.graph.erase_node(replaced)
    network.graph.lint()
    network.recompile()
    return network


def _module(network: fx.GraphModule, node: fx.Node) -> Any:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_convolution(network: fx.GraphModule, node: Any) -> bool:
    """Whether it is a packed one that nothing else uses."""
    return (
        isinstance(node, fx.Node)
        and isinstance(_module(network, node), PackedConv2d)
        and len(node.users) == 1
    )
