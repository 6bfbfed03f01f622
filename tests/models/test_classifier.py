"""The classifier: normalization inside, weights files verified before use, the same bytes on every save."""

import hashlib
import re
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.models._api import WeightsEnum

from stages.models import classifier
from stages.models.classifier import ModelError, load, save
from stages.models.weights import create_model

CLASSES = ("Type_1", "Type_2", "Type_3")
FIRST_NORM = "features.denseblock1.denselayer1.norm1.weight"


def resnet18(weights="none", sha256="none", arch="resnet18"):
    return create_model(arch, CLASSES, 32, str(weights), sha256, 0)


def with_digest(file):
    """The file, renamed as torchvision does: with the first digits of its SHA-256."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return file.rename(file.with_stem(f"{file.stem}-{digest}"))


def test_normalization_is_the_first_layer():
    model = resnet18().eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(classifier.IMAGENET_MEAN).view(3, 1, 1),
        torch.tensor(classifier.IMAGENET_STD).view(3, 1, 1),
    )
    assert torch.allclose(model(x), model.backbone((x - mean) / std))
    assert model(x).shape == (2, 3)


def test_logits_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert resnet18().eval()(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_fused_model_is_the_same_function_without_batchnorm():
    model = resnet18()
    model(torch.rand(16, 3, 32, 32))  # running statistics that aren't the initial ones
    fused, x = classifier.fuse_batchnorm(model), torch.rand(4, 3, 32, 32, requires_grad=True)
    assert model.training
    assert not fused.training
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    assert torch.allclose(fused(x), model.eval()(x), atol=1e-4)
    gradients = [torch.autograd.grad(m(x)[:, 0].sum(), x)[0] for m in (fused, model)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_saved_model_round_trips_with_identical_bytes(tmp_path):
    model = resnet18().eval()
    save(tmp_path / "a.safetensors", model)
    loaded = load(tmp_path / "a.safetensors", CLASSES, 32)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), loaded(x))
    assert not loaded.training
    save(tmp_path / "b.safetensors", loaded)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_load_refuses_other_classes_or_image_size(tmp_path):
    save(tmp_path / "m.safetensors", resnet18())
    with pytest.raises(ModelError, match="expected a model of the classes a, b"):
        load(tmp_path / "m.safetensors", ("a", "b"))
    with pytest.raises(ModelError, match="expected a model for 64 pixels, got 32"):
        load(tmp_path / "m.safetensors", CLASSES, 64)


def test_load_refuses_missing_or_invalid_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a model")
    for name in ("x", "missing"):
        with pytest.raises(
            ModelError, match=f"{name}.safetensors: expected a model that this pipeline saved"
        ):
            load(tmp_path / f"{name}.safetensors")


def test_unknown_architecture_is_named():
    with pytest.raises(
        ModelError, match=r"model.arch: expected one of .*resnet50.*, got 'resnet51'"
    ):
        create_model("resnet51", CLASSES, 32, "none", "none", 0)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "densenet121"])
def test_size_at_which_a_strided_convolution_sees_one_pixel_is_refused(arch):
    """In bfloat16, torch 2.14.1 on a CPU leaves 8 of 9 taps of that convolution's gradient uninitialized."""
    message = (
        f"data.image_size: expected more than 16 for {arch}, got 16: its .* would see one pixel"
    )
    if arch == "densenet121":  # strides by pooling, which has no weights
        assert create_model(arch, CLASSES, 32, "none", "none", 0).image_size == 32
        return
    with pytest.raises(ModelError, match=message):
        create_model(arch, CLASSES, 16, "none", "none", 0)
    assert create_model(arch, CLASSES, 24, "none", "none", 0).training


def test_size_that_an_architecture_cannot_take_is_refused():
    with pytest.raises(
        ModelError, match=r"data\.image_size: expected a size that alexnet can take, got 32: "
    ):
        create_model("alexnet", CLASSES, 32, "none", "none", 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    model = resnet18()
    with torch.no_grad():
        model.backbone.fc.weight[0, 0] = value
    save(tmp_path / "model.safetensors", model)
    with pytest.raises(
        ModelError, match=r"m.*\.safetensors: .* finite numbers for backbone\.fc\.weight, got NaN"
    ):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "convnext_tiny"]
)
def test_pretrained_weights_fill_all_layers_but_the_head(arch, tmp_path):
    torch.manual_seed(1)
    donor = torchvision.models.get_model(arch, num_classes=7)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}},
        tmp_path / "donor.pth",
    )
    digest = hashlib.sha256((tmp_path / "donor.pth").read_bytes())
    model = create_model(arch, CLASSES, 64, str(tmp_path / "donor.pth"), digest.hexdigest(), 0)
    state, own = donor.state_dict(), model.backbone.state_dict()
    fresh = {
        name
        for name in own
        if own[name].shape != state[name].shape or not torch.equal(own[name], state[name])
    }
    assert fresh == {name for name in own if name.startswith(model.head + ".")}


def test_missing_or_invalid_weights_file_is_refused(tmp_path):
    with pytest.raises(
        ModelError,
        match=r"model.weights: expected none, imagenet or an existing file, got .*missing.pth",
    ):
        resnet18(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ModelError, match="expected a state dict or a safetensors file"):
        resnet18(with_digest(tmp_path / "text.pth"))


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(torchvision.models.resnet34(num_classes=3).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ModelError, match="expected the layers of resnet50"):
        resnet18(with_digest(tmp_path / "resnet34.pth"), arch="resnet50")


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    """ResNet-34 has all layers of ResNet-18 in the same shapes, and more."""
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ModelError, match=r"expected the layers of resnet18, got also layer1\.2\."):
        resnet18(with_digest(tmp_path / "resnet34.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.to(torch.complex64),
            "expected floating-point numbers for conv1.weight, got torch.complex64",
        ),
        (
            lambda w: w.to(torch.int8),
            "expected floating-point numbers for conv1.weight, got torch.int8",
        ),
        (
            lambda w: w.to("meta"),
            "expected floating-point numbers for conv1.weight, got torch.float32 on meta",
        ),
        (lambda w: w.to_sparse(), "expected floating-point numbers for conv1.weight"),
        (lambda w: w * float("nan"), "expected finite numbers for conv1.weight"),
        (lambda w: torch.full_like(w, 1e38), "expected weights that give finite logits"),
        (lambda w: w.expand(2, *w.shape), "got another shape of conv1.weight"),
    ],
)
def test_weights_that_cannot_be_right_are_refused_by_name(tmp_path, change, message):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message) as caught:
        resnet18(with_digest(tmp_path / "w.pth"))
    assert "w-" in str(caught.value)


@pytest.mark.parametrize(
    "content", [[1, 2], None, torch.ones(3), {1: torch.ones(3)}, {"a": 1}, {"model": [1]}]
)
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w-\w+\.pth: expected a state dict"):
        resnet18(with_digest(tmp_path / "w.pth"))


def test_zip_bomb_is_refused_unread(tmp_path):
    torch.save({"conv1.weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 10**5
    with pytest.raises(ModelError, match=r"bomb-\w+\.pth: .* an archive that unpacks to 40"):
        resnet18(with_digest(tmp_path / "bomb.pth"))


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"arch": 1}', '{"arch": "resnet18", "classes": [1], "image_size": 32}'],
)
def test_saved_model_with_a_damaged_description_is_named(tmp_path, config):
    tensors = {name: tensor.contiguous() for name, tensor in resnet18().state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"config": config})
    with pytest.raises(
        ModelError, match=r"m\.safetensors: expected a model that this pipeline saved"
    ):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights-2024.pth", "weights.safetensors"])
def test_weights_without_a_digest_are_refused_and_the_digest_is_printed(tmp_path, name):
    file = tmp_path / name
    safetensors.torch.save_file(torchvision.models.resnet18().state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"{name}: expected its SHA-256 .* to {digest}$"):
        resnet18(file)


@pytest.mark.parametrize(
    ("name", "sha256", "expected"),
    [
        ("weights.pth", "0123abcd", "0123abcd"),
        ("weights-0123abcd.pth", "none", "0123abcd"),
        ("weights-0123abcdef.pt", "none", "0123abcdef"),
    ],
)
def test_weights_with_another_digest_are_refused(tmp_path, name, sha256, expected):
    torch.save({}, tmp_path / name)
    with pytest.raises(ModelError, match=rf"expected SHA-256 {expected} \(8 digits or more\), got"):
        resnet18(tmp_path / name, sha256)


def test_digest_in_params_or_name_identifies_weights(tmp_path):
    """From 8 digits on."""
    expected = torchvision.models.resnet18().state_dict()
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(expected, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match="8 digits or more"):
        resnet18(file, digest[:7])
    by_params = [resnet18(file, digits) for digits in (digest, digest[:8].upper())]
    for model in (*by_params, resnet18(with_digest(file))):
        assert torch.equal(model.backbone.conv1.weight, expected["conv1.weight"])


class MaliciousPickle:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_pickled_code_is_never_executed(tmp_path):
    torch.save({"a": MaliciousPickle(tmp_path / "owned")}, tmp_path / "malicious.pth")
    with pytest.raises(ModelError):
        resnet18(with_digest(tmp_path / "malicious.pth"))
    assert not (tmp_path / "owned").exists()


def test_failed_download_names_both_remedies(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ModelError, match=r"expected to download resnet18-\w+\.pth, got: no network. Two ways out"
    ):
        resnet18("imagenet")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A local server in place of torchvision's: (folder that it serves, torch's cache, paths that were requested)."""
    served, requested = tmp_path / "served", []
    served.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, form, *args):
            requested.append(self.path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/{{}}"
        monkeypatch.setattr(
            WeightsEnum, "url", property(lambda self: url.format(next(served.iterdir()).name))
        )
        Thread(target=server.serve_forever, daemon=True).start()
        yield served, tmp_path / "cache" / "checkpoints", requested
        server.shutdown()


def save_with_digest(state, folder):
    """A file named as torchvision does: with the first digits of its sha256."""
    torch.save(state, folder / "net.pth")
    return with_digest(folder / "net.pth")


def test_imagenet_weights_are_downloaded_once_with_a_progress_line(imagenet, capfd):
    served, cache, requested = imagenet
    expected = torchvision.models.densenet121(num_classes=1000).state_dict()
    # torchvision's own file of this network uses older names.
    old_names = {
        re.sub(r"(layer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in expected.items()
    }
    file = save_with_digest(old_names, served)
    for _ in range(2):
        model = create_model("densenet121", CLASSES, 32, "imagenet", "none", 0)
    assert torch.equal(
        model.backbone.features.denseblock1.denselayer1.norm1.weight, expected[FIRST_NORM]
    )
    assert requested == [f"/{file.name}"]
    assert [path.name for path in cache.iterdir()] == [file.name]
    out, err = capfd.readouterr()
    assert f"downloading {file.name}" in out
    assert "100%" in err


def test_corrupted_download_is_refused_and_deleted(imagenet):
    served, cache, _ = imagenet
    file = save_with_digest({}, served)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(
        ModelError,
        match=rf"expected to download {file.name}, got: invalid hash value.*Two ways out",
    ):
        resnet18("imagenet")
    assert not list(cache.iterdir())


def test_cached_weights_file_is_not_trusted(imagenet, tmp_path):
    served, cache, requested = imagenet
    cache.mkdir(parents=True)
    malicious = save_with_digest({"a": MaliciousPickle(tmp_path / "owned")}, cache)
    (served / malicious.name).touch()
    with pytest.raises(ModelError, match="expected a state dict"):
        resnet18("imagenet")
    assert not requested
    assert not (tmp_path / "owned").exists()


def test_frozen_layers_do_not_change_in_train_mode():
    model = resnet18()
    model.freeze("layer2")
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(
        k.startswith(("backbone.layer3", "backbone.layer4")) for k in changed
    )  # running statistics
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2")
    assert all(
        (parameter.grad is None) == name.startswith(frozen)
        for name, parameter in model.named_parameters()
    )


@pytest.mark.parametrize(
    ("arch", "layer"),
    [("resnet18", "layer9"), ("resnet18", "fc"), ("squeezenet1_1", "classifier")],
)
def test_freezing_an_unknown_layer_or_the_head_is_refused(arch, layer):
    message = rf"freeze: expected a layer before the head \(.*\) or none, got '{layer}'"
    with pytest.raises(ModelError, match=message):
        create_model(arch, CLASSES, 32, "none", "none", 0).freeze(layer)
