"""Architectures of torchvision and timm by name."""

import pytest
import timm
import torch
from torch import fx, nn

from stages.models.architectures import ModelError, build
from stages.models.classifier import Classifier, check_image_size, load, save
from stages.models.fusion import fuse_batchnorm

LITE = "timm/tf_efficientnet_lite0"
CLASSES = ("a", "b", "c")


def trained_a_little(arch, side):
    """Running statistics and a head that aren't the initial ones."""
    torch.manual_seed(0)
    model = Classifier(arch, CLASSES, side)
    for parameter in model.backbone.get_submodule(model.head).parameters():
        nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        model(torch.rand(8, 3, side, side))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnt50", "resnet50"),
        ("timm/convnxt_nano", "timm/convnext_nano"),
        ("timm/convnext_nano.in12k_ft_in1", "timm/convnext_nano.in12k_ft_in1k"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(ModelError, match=r"^model\.arch: expected one of") as error:
        build(name, 3)
    named = str(error.value).rpartition("the nearest names are ")[2].split(", ")
    assert nearest in named
    assert len(named) <= 5


@pytest.mark.parametrize("name", ["timm/hf-hub:timm/resnet18", "timm/local-dir:x", "timm/"])
def test_only_names_of_architectures_are_taken(name, monkeypatch):
    """timm itself would download the description of a repository."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("was called"))
    with pytest.raises(ModelError, match=r"^model\.arch: expected one of"):
        build(name, 3)


@pytest.mark.parametrize(
    "name", ["timm/deit_tiny_distilled_patch16_224", "timm/crossvit_tiny_240", "googlenet"]
)
def test_architecture_with_two_heads_is_refused(name):
    with pytest.raises(ModelError, match=r"model\.arch: expected"):
        build(name, 3)


def test_fixed_image_size_is_named():
    model = Classifier("timm/vit_tiny_patch16_224", CLASSES, 64)
    with pytest.raises(ModelError, match=r"data\.image_size: expected a size that timm/vit.*224"):
        check_image_size(model)


@pytest.mark.parametrize("arch", [LITE, "timm/resnet18.a1_in1k"])
def test_images_are_normalized_as_the_pretrained_weights_expect(arch):
    model, x = trained_a_little(arch, 32), torch.rand(2, 3, 32, 32)
    config = timm.get_pretrained_cfg(arch.removeprefix("timm/"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    assert torch.allclose(model(x), model.backbone((x - mean) / std), atol=1e-6)


def test_first_predictions_of_timm_are_undecided():
    logits = Classifier(LITE, CLASSES, 32).eval()(torch.rand(2, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(2, 3))


def test_saved_model_of_timm_round_trips(tmp_path):
    model, x = trained_a_little(LITE, 32), torch.rand(2, 3, 32, 32)
    save(tmp_path / "m.safetensors", model)
    assert torch.equal(load(tmp_path / "m.safetensors", CLASSES, 32)(x), model(x))


@pytest.mark.parametrize(
    ("arch", "side", "left"),
    [
        (LITE, 32, 0),
        (LITE, 45, 0),  # "same" padding differs by side
        ("timm/test_resnet", 32, 0),
        ("timm/resnetv2_18", 32, 9),  # BatchNorm before the convolution: only some can be fused
    ],
)
def test_fused_network_of_timm_is_the_same_function(arch, side, left):
    model, x = trained_a_little(arch, side), torch.rand(4, 3, side, side, requires_grad=True)
    fused = fuse_batchnorm(model)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules()) == left
    expected = model(x)
    assert torch.allclose(fused(x), expected, atol=1e-4 * expected.abs().max().item())
    gradients = [torch.autograd.grad(m(x)[:, 0].sum(), x)[0] for m in (fused, model)]
    assert torch.allclose(*gradients, atol=1e-3 * gradients[1].abs().max().item())


def test_network_that_cannot_be_traced_is_copied_as_it_is():
    model, x = trained_a_little("timm/mobilevit_xxs", 64), torch.rand(1, 3, 64, 64)
    fused = fuse_batchnorm(model)
    assert not isinstance(fused.backbone, fx.GraphModule)
    assert torch.equal(fused(x), model(x))
