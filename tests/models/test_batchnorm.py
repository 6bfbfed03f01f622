"""BatchNorm of a batch that is divided among processes."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from stages.models import batchnorm

LAYERS = (nn.BatchNorm2d(3), BatchNormAct2d(3))  # timm's applies ReLU, too


@pytest.fixture
def twin(monkeypatch):
    """A second process with the same images: every sum over processes is twice one's own."""
    monkeypatch.setattr(batchnorm.dist, "all_reduce", lambda part: part.mul_(2))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_divided_batch_is_normalized_as_if_one_process_had_all_of_it(twin, layer):
    x, direction = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    whole, divided = copy.deepcopy(layer).train(), copy.deepcopy(layer).train()
    batchnorm.convert_sync_batchnorm(divided)
    x.requires_grad_()
    expected, y = whole(torch.cat((x, x))), divided(x)
    torch.testing.assert_close(torch.cat((y, y)), expected)
    (wanted,) = torch.autograd.grad((expected * torch.cat((direction, direction))).sum(), x)
    (gradient,) = torch.autograd.grad((y * direction).sum(), x)  # the twin adds as much
    torch.testing.assert_close(2 * gradient, wanted)
    torch.testing.assert_close(divided.state_dict(), whole.state_dict())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_reverted_layer_is_what_it_was(layer):
    model = nn.Sequential(copy.deepcopy(layer))
    batchnorm.convert_sync_batchnorm(model)
    assert type(model[0]) is not type(layer)
    batchnorm.revert_sync_batchnorm(model)
    assert type(model[0]) is type(layer)
