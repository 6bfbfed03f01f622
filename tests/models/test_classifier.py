"""The classifier: normalization inside, files checked before use, the same bytes on every save."""

import pytest
import safetensors.torch
import torch

from stages.models import architectures, fusion
from stages.models.architectures import ModelError
from stages.models.classifier import load, save
from stages.models.weights import create_model

CLASSES = ("Type_1", "Type_2", "Type_3")
NOT_OURS = "expected a model that this pipeline saved"


def new_model(arch="resnet18", side=32):
    return create_model(arch, CLASSES, side, "none", "none", 0)


def test_normalization_is_the_first_layer():
    model, x = new_model().eval(), torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (architectures.IMAGENET_MEAN, architectures.IMAGENET_STD)
    )
    assert torch.allclose(model(x), model.backbone((x - mean) / std))


def test_logits_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert new_model().eval()(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_fused_model_is_the_same_function_without_batchnorm():
    model = new_model()
    model(torch.rand(16, 3, 32, 32))  # running statistics that aren't the initial ones
    fused, x = fusion.fuse_batchnorm(model), torch.rand(4, 3, 32, 32, requires_grad=True)
    assert (model.training, fused.training) == (True, False)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    assert torch.allclose(fused(x), model.eval()(x), atol=1e-4)
    gradients = [torch.autograd.grad(m(x)[:, 0].sum(), x)[0] for m in (fused, model)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_saved_model_round_trips_with_identical_bytes(tmp_path):
    model, x = new_model().eval(), torch.rand(2, 3, 32, 32)
    save(tmp_path / "a.safetensors", model)
    loaded = load(tmp_path / "a.safetensors", CLASSES, 32)
    assert torch.equal(model(x), loaded(x))
    assert not loaded.training
    save(tmp_path / "b.safetensors", loaded)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_model_of_other_classes_or_image_size_is_refused(tmp_path):
    save(tmp_path / "m.safetensors", new_model())
    with pytest.raises(ModelError, match="expected a model of the classes a, b"):
        load(tmp_path / "m.safetensors", ("a", "b"))
    with pytest.raises(ModelError, match="expected a model for 64 pixels, got 32"):
        load(tmp_path / "m.safetensors", CLASSES, 64)


def test_missing_or_invalid_file_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_bytes(b"not a model")
    for name in ("text", "missing"):
        with pytest.raises(ModelError, match=rf"{name}\.safetensors: {NOT_OURS}"):
            load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"arch": 1}', '{"arch": "resnet18", "classes": [1], "image_size": 32}'],
)
def test_model_with_a_damaged_description_is_refused(tmp_path, config):
    tensors = {name: tensor.contiguous() for name, tensor in new_model().state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"config": config})
    with pytest.raises(ModelError, match=rf"m\.safetensors: {NOT_OURS}"):
        load(tmp_path / "m.safetensors")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.backbone.fc.weight[0, 0] = float("nan")
    save(tmp_path / "m.safetensors", model)
    message = r"m\.safetensors: .* finite numbers for backbone\.fc\.weight, got NaN"
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("arch", "side", "message"),
    [
        (
            "resnet51",
            32,
            r"model\.arch: expected one of .*, got 'resnet51'; the nearest names are resnet50",
        ),
        ("alexnet", 32, r"data\.image_size: expected a size that alexnet can take, got 32: "),
        # In bfloat16, torch 2.14.1 on a CPU leaves most of that layer's gradient uninitialized.
        ("resnet18", 16, r"expected more than 16 for resnet18, got 16: its .* would see one pixel"),
        ("resnet50", 16, r"expected more than 16 for resnet50, got 16: its .* would see one pixel"),
    ],
)
def test_impossible_architecture_or_image_size_is_refused(arch, side, message):
    with pytest.raises(ModelError, match=message):
        new_model(arch, side)


@pytest.mark.parametrize(("arch", "side"), [("resnet50", 24), ("densenet121", 32)])
def test_small_images_are_accepted_where_no_strided_convolution_sees_one_pixel(arch, side):
    assert new_model(arch, side).training


def test_frozen_layers_do_not_change_in_train_mode():
    model = new_model()
    model.freeze("layer2")
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}  # running statistics
    assert changed
    assert all(k.startswith(("backbone.layer3", "backbone.layer4")) for k in changed)
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)


@pytest.mark.parametrize(
    ("arch", "layer"),
    [("resnet18", "layer9"), ("resnet18", "fc"), ("squeezenet1_1", "classifier")],
)
def test_freezing_an_unknown_layer_or_the_head_is_refused(arch, layer):
    message = rf"freeze: expected a layer before the head \(.*\) or none, got '{layer}'"
    with pytest.raises(ModelError, match=message):
        new_model(arch).freeze(layer)


def test_model_whose_layers_have_versions_is_read_back(tmp_path):
    model = new_model("mnasnet0_5").eval()
    save(tmp_path / "model.safetensors", model)
    loaded, x = load(tmp_path / "model.safetensors", CLASSES, 32).eval(), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
