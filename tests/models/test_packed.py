"""A network with packed weights is the plain network, in bfloat16."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from stages.models import convolutions, packed
from stages.models.convolutions import use_matmul
from stages.models.fusion import fuse_batchnorm
from stages.models.packed import PackedConv2d, TwoPrecisions, for_attacks, pack
from stages.models.weights import create_model

LAYERS = {
    "stem": (nn.Conv2d(3, 16, 7, 2, 3), 20),
    "3x3": (nn.Conv2d(8, 16, 3, padding=1), 9),
    "stride that leaves pixels": (nn.Conv2d(8, 16, 3, 3, 1), 12),
    "1x1": (nn.Conv2d(8, 16, 1, bias=False), 9),
    "groups": (nn.Conv2d(8, 16, 3, padding=1, groups=4), 9),
    "depthwise": (nn.Conv2d(8, 8, 3, 2, 1, groups=8), 9),
    "depthwise, stride that leaves pixels": (nn.Conv2d(8, 8, (5, 3), (2, 3), 1, groups=8), 10),
    "dilation": (nn.Conv2d(8, 16, 3, padding=2, dilation=2), 9),
    "product 3x3": (nn.Conv2d(8, 16, 3, 2, 1), 3),
    "product 1x1": (nn.Conv2d(8, 16, 1, 2), 4),
}


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_and_its_input_gradient_are_those_of_conv2d(name, activation):
    torch.manual_seed(0)
    holder = nn.Sequential(LAYERS[name][0]).to(torch.bfloat16).float()  # weights without rounding
    use_matmul(holder)
    side, plain = LAYERS[name][1], holder[0]
    layer = PackedConv2d(plain)
    layer.activation = activation
    x = (
        4
        * torch.randn(4, plain.in_channels, side, side).to(torch.bfloat16).float().requires_grad_()
    )
    y, expected = layer(x).float(), plain(x)
    # As the activation: but with the same mask, for bfloat16 rounds some values to its bounds.
    if activation:
        expected = torch.where(y.detach() > 0, expected, 0)
    if activation == "relu6":
        expected = torch.where(y.detach() < 6, expected, 6)
    assert (y - expected).norm() < 0.01 * expected.norm()
    weights = torch.randn_like(y)
    found, gradient = (torch.autograd.grad((z * weights).sum(), x)[0] for z in (y, expected))
    assert (found - gradient).norm() < 0.01 * gradient.norm()


@pytest.mark.parametrize("side", [2, 9])
def test_residual_is_added_before_the_relu(side):
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Conv2d(16, 16, 1)).to(torch.bfloat16).float()
    use_matmul(holder)
    layer = PackedConv2d(holder[0])
    layer.activation = "relu"
    x, residual = (torch.randn(4, 16, side, side).to(torch.bfloat16) for _ in range(2))
    residual = residual.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x, residual)
    expected = (holder[0](x.float()) + residual).relu()
    assert (y - expected).norm() < 0.01 * expected.norm()
    (gradient,) = torch.autograd.grad(y.sum(), residual)
    assert torch.equal(gradient, (y > 0).to(gradient.dtype))


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "mobilenet_v3_small", "swin_t"])
def test_model_has_packed_weights_and_is_as_near_to_float32_as_autocast(arch):
    fused = fuse_batchnorm(create_model(arch, ("a", "b", "c"), 64, "none", "none", 0))
    network = pack(fused.requires_grad_(False))  # compares them itself
    assert network is not None
    assert any(isinstance(layer, PackedConv2d) for layer in network.modules())


def test_result_of_an_image_hardly_depends_on_the_batch():
    fused = fuse_batchnorm(create_model("resnet18", ("a", "b", "c"), 64, "none", "none", 0))
    network, x = pack(fused.requires_grad_(False)), torch.rand(9, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        together, alone = network(x), torch.cat([network(x[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=0.02, atol=0.02)


@pytest.fixture
def no_operators(monkeypatch):
    monkeypatch.setattr(packed, "ONEDNN", object())


@pytest.fixture
def other_function(monkeypatch):
    monkeypatch.setattr(PackedConv2d, "convolve", lambda self, x, residual: 2 * self.layer(x))


@pytest.mark.parametrize("fault", ["no_operators", "other_function"])
def test_where_torch_computes_something_else_autocast_takes_over(fault, request, capsys):
    request.getfixturevalue(fault)
    model = create_model("resnet18", ("a", "b", "c"), 32, "none", "none", 0).eval()
    network = for_attacks(model, Fabric(accelerator="cpu", precision="bf16-mixed"))
    assert capsys.readouterr().err.startswith("attacks don't use packed weights: ")
    assert isinstance(network, TwoPrecisions)
    x = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), network.model(x))


def test_in_float32_there_is_no_copy():
    model = create_model("resnet18", ("a", "b", "c"), 32, "none", "none", 0)
    network, x = for_attacks(model, Fabric(accelerator="cpu")), torch.rand(2, 3, 32, 32)
    assert not isinstance(network, TwoPrecisions)
    assert model.training
    torch.testing.assert_close(network(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_products_are_used_in_both_ways():
    """The layers above test what they say only while this rule holds."""
    assert convolutions.PIXELS[1] >= 4
    assert 4 <= convolutions.PIXELS[3] < 9
