"""A classifier's BatchNorm fused into its convolutions: the same function, cheaper to attack."""

import contextlib
import copy
import math

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from stages.models.architectures import TIMM
from stages.models.batchnorm import revert_sync_batchnorm
from stages.models.classifier import Classifier
from stages.models.convolutions import revert_matmul, use_matmul
from stages.models.depthwise import revert_float32

# What tracing raises for control flow that depends on the input.
UNTRACEABLE = (fx.proxy.TraceError, AssertionError, RuntimeError, TypeError, ValueError)


def fuse_batchnorm(model: Classifier) -> Classifier:
    """A copy in eval mode with every BatchNorm fused into the convolution before it, for attacks.

    It is the same function up to rounding, for images of the model's size. A network that torch.fx
    can't trace, as some of timm's, is copied as it is.
    """
    fused = copy.deepcopy(model).eval()
    revert_sync_batchnorm(fused)
    revert_matmul(fused)
    revert_float32(fused)
    if model.arch.startswith(TIMM):
        use_torch_layers(fused)
    with contextlib.suppress(*UNTRACEABLE):
        fused.backbone = fuse(fused.backbone)
    use_matmul(fused.backbone)
    return fused


def use_torch_layers(model: Classifier) -> None:
    """Divide timm's layers of two steps into torch's of one, which torch.fx traces and fuses.

    BatchNorm with an activation, and convolution padded by the size of its input.
    """
    from timm.layers import BatchNormAct2d, Conv2dSame

    for name, layer in list(model.backbone.named_modules()):
        if type(layer) is BatchNormAct2d:
            activation = layer.act
            del layer.drop, layer.act  # nothing is dropped in eval mode
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
            model.backbone.set_submodule(name, nn.Sequential(layer, activation))
    for name, size in input_sizes(model, Conv2dSame).items():
        layer = model.backbone.get_submodule(name)
        assert isinstance(layer, Conv2dSame)
        left, right = same_margins(layer, 1, size[1])
        top, bottom = same_margins(layer, 0, size[0])
        layer.__class__ = nn.Conv2d  # type: ignore[assignment]
        padding = nn.ZeroPad2d((left, right, top, bottom))
        model.backbone.set_submodule(name, nn.Sequential(padding, layer))


def same_margins(layer: nn.Conv2d, axis: int, size: int) -> tuple[int, int]:
    """Zeros before and after an axis of that size for TensorFlow's "same" padding."""
    stride = layer.stride[axis]
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
    outputs = math.ceil(size / stride)
    margin = max((outputs - 1) * stride + reach - size, 0)
    return margin // 2, margin - margin // 2


def input_sizes(model: Classifier, kind: type[nn.Module]) -> dict[str, torch.Size]:
    """Height and width of the input of each layer of that kind, by the layer's name."""
    sizes: dict[str, torch.Size] = {}

    def record(name: str, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = inputs[0].shape[-2:]

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs))
        for name, layer in model.backbone.named_modules()
        if type(layer) is kind
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, model.image_size, model.image_size, device=model.mean.device))
    for hook in hooks:
        hook.remove()
    return sizes
