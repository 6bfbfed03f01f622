"""Convolutions computed as matrix products are the convolutions that torch computes."""

import copy

import pytest
import torch
from torch import nn

from stages.models import convolutions
from stages.models.classifier import Classifier
from stages.models.convolutions import MatmulConv2d, revert_matmul, use_matmul
from stages.models.fusion import fuse_batchnorm


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """All convolutions that can be computed as products are."""
    monkeypatch.setattr(convolutions, "PIXELS", {1: 10**6, 3: 10**6})


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of its squares with respect to the input and parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 7), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_conv2d(kernel, stride, size, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, kernel, stride, kernel // 2, bias=bias).double()
    product = copy.deepcopy(layer)
    use_matmul(product)
    assert type(product) is MatmulConv2d
    x = torch.randn(3, 5, *size, dtype=torch.double)
    for expected, got in zip(gradients(layer, x), gradients(product, x), strict=True):
        torch.testing.assert_close(got, expected)


def test_gradient_is_that_of_finite_differences():
    layer = nn.Conv2d(2, 3, 3, 2, 1).double()
    use_matmul(layer)
    x = torch.randn(2, 2, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, (1, 2), 1),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(4, 4, 5, padding=2),
    ],
)
def test_other_convolutions_are_left_alone(layer):
    use_matmul(layer)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
def test_model_has_the_same_logits_and_gradients_also_with_fused_batchnorm(arch):
    torch.manual_seed(0)
    model = Classifier(arch, ("a", "b", "c"), 32).eval()
    assert any(type(layer) is MatmulConv2d for layer in model.modules())
    plain = copy.deepcopy(model)
    revert_matmul(plain)
    fused = fuse_batchnorm(model)
    assert any(type(layer) is MatmulConv2d for layer in fused.modules())
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    outputs = [(m(x), torch.autograd.grad(m(x)[:, 0].sum(), x)[0]) for m in (plain, model, fused)]
    for logits, gradient in outputs[1:]:
        torch.testing.assert_close(logits, outputs[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, outputs[0][1], rtol=1e-3, atol=1e-4)
