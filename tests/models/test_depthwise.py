"""Depthwise convolutions in float32: the same function, as precise as asked for."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from stages.models.depthwise import Float32, revert_float32, use_float32


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_same_function_and_gradients(kind):
    torch.manual_seed(0)
    plain = nn.Sequential(kind(6, 6, 5, 2, groups=6), kind(6, 4, 1))
    changed = copy.deepcopy(plain)
    use_float32(changed)
    assert [isinstance(layer, Float32) for layer in changed] == [True, False]
    x = torch.rand(2, 6, 9, 9, requires_grad=True)
    assert torch.equal(changed(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        y, rounded = changed(x), plain(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y, rounded, atol=0.05)
    for parameter, gradient in zip(
        plain.parameters(), torch.autograd.grad(y.sum(), list(changed.parameters())), strict=True
    ):
        (expected,) = torch.autograd.grad(plain(x).sum(), parameter)
        assert (gradient - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(changed.double()(x.double()), plain.double()(x.double()))
    revert_float32(changed)
    assert [type(layer) for layer in changed] == [kind, kind]
