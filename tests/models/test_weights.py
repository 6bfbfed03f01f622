"""Pretrained weights: identified by their digest, verified before use, named when refused."""

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

from stages.models.architectures import ModelError
from stages.models.weights import create_model


def pretrained(weights, sha256="none", arch="resnet18"):
    return create_model(arch, ("a", "b", "c"), 64, str(weights), sha256, 0)


def sha256_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def saved(content, folder, name="w"):
    """A file named as torchvision does: with the first digits of its SHA-256."""
    torch.save(content, folder / "new")
    return (folder / "new").rename(folder / f"{name}-{sha256_of(folder / 'new')[:8]}.pth")


@pytest.mark.parametrize(
    "arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "convnext_tiny"]
)
def test_pretrained_weights_fill_all_layers_but_the_head(arch, tmp_path):
    torch.manual_seed(1)
    state = torchvision.models.get_model(arch, num_classes=7).state_dict()
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    model = pretrained(saved(wrapped, tmp_path), arch=arch)
    for name, value in model.backbone.state_dict().items():
        same = value.shape == state[name].shape and torch.equal(value, state[name])
        assert same != name.startswith(model.head + "."), name


@pytest.mark.parametrize("name", ["weights.pth", "weights-2024.pth", "weights.safetensors"])
def test_weights_without_a_digest_are_refused_and_the_digest_is_printed(tmp_path, name):
    file = tmp_path / name
    safetensors.torch.save_file(torchvision.models.resnet18().state_dict(), file)
    with pytest.raises(ModelError, match=f"{name}: expected its SHA-256 .* to {sha256_of(file)}$"):
        pretrained(file)


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
        pretrained(tmp_path / name, sha256)


def test_digest_in_params_identifies_weights(tmp_path):
    """From 8 digits on."""
    expected, file = torchvision.models.resnet18().state_dict(), tmp_path / "w.safetensors"
    safetensors.torch.save_file(expected, file)
    digest = sha256_of(file)
    for digits in (digest, digest[:8].upper()):
        found = pretrained(file, digits).backbone.conv1.weight
        assert torch.equal(found, expected["conv1.weight"])
    with pytest.raises(ModelError, match="8 digits or more"):
        pretrained(file, digest[:7])


def test_missing_or_invalid_file_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"expected none, imagenet or an existing file, got .*no\.p"
    ):
        pretrained(tmp_path / "no.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ModelError, match=r"text\.pth: expected a state dict or a safetensors file"):
        pretrained(tmp_path / "text.pth", sha256_of(tmp_path / "text.pth"))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet50", "expected the layers of resnet50, got another shape of "),
        # ResNet-34 has all layers of ResNet-18 in the same shapes, and more.
        ("resnet18", r"expected the layers of resnet18, got also layer1\.2\."),
        ("shufflenet_v2_x0_5", "expected the layers of shufflenet_v2_x0_5, got no "),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, arch, message):
    file = saved(torchvision.models.resnet34().state_dict(), tmp_path)
    with pytest.raises(ModelError, match=message):
        pretrained(file, arch=arch)


NO_FLOATS = "expected floating-point numbers for conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.complex64), f"{NO_FLOATS}, got torch.complex64"),
        (lambda w: w.to(torch.int8), f"{NO_FLOATS}, got torch.int8"),
        (lambda w: w.to("meta"), f"{NO_FLOATS}, got torch.float32 on meta"),
        (lambda w: w.to_sparse(), NO_FLOATS),
        (lambda w: w * float("nan"), "expected finite numbers for conv1.weight"),
        (lambda w: torch.full_like(w, 1e38), "expected weights that give finite logits"),
    ],
)
def test_weights_that_cannot_be_right_are_refused_by_name(tmp_path, change, message):
    state = torchvision.models.resnet18().state_dict()
    file = saved(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path)
    with pytest.raises(ModelError, match=f"{file.name}: {message}"):
        pretrained(file)


@pytest.mark.parametrize(
    "content", [[1, 2], None, torch.ones(3), {1: torch.ones(3)}, {"a": 1}, {"model": [1]}]
)
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    file = saved(content, tmp_path)
    with pytest.raises(ModelError, match=f"{file.name}: expected a state dict"):
        pretrained(file)


def test_zip_bomb_is_refused_unread(tmp_path):
    torch.save({"conv1.weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert bomb.stat().st_size < 10**5
    with pytest.raises(ModelError, match=r"bomb\.pth: .* an archive that unpacks to 40"):
        pretrained(bomb, sha256_of(bomb))


class MaliciousPickle:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_pickled_code_is_never_executed(tmp_path):
    with pytest.raises(ModelError, match="expected a state dict"):
        pretrained(saved({"a": MaliciousPickle(tmp_path / "owned")}, tmp_path))
    assert not (tmp_path / "owned").exists()


def test_failed_download_names_both_remedies(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    message = r"expected to download resnet18-\w+\.pth, got: no network. Two ways out"
    with pytest.raises(ModelError, match=message):
        pretrained("imagenet")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A local server instead of torchvision's: its folder, torch's cache, the requested paths."""
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
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield served, tmp_path / "cache" / "checkpoints", requested
        server.shutdown()


def test_imagenet_weights_are_downloaded_once_with_a_progress_line(imagenet, capfd):
    served, cache, requested = imagenet
    expected = torchvision.models.densenet121(num_classes=1000).state_dict()
    # torchvision's own file of this network uses older names.
    old_names = {
        re.sub(r"(layer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in expected.items()
    }
    file = saved(old_names, served, "densenet")
    for _ in range(2):
        state = pretrained("imagenet", arch="densenet121").backbone.state_dict()
    norm = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(state[norm], expected[norm])
    assert requested == [f"/{file.name}"]
    assert [path.name for path in cache.iterdir()] == [file.name]
    out, err = capfd.readouterr()
    assert f"downloading {file.name}" in out
    assert "100%" in err


def test_corrupted_download_is_refused_and_deleted(imagenet):
    served, cache, _ = imagenet
    file = saved({}, served)
    file.write_bytes(file.read_bytes()[:-10])
    message = rf"expected to download {file.name}, got: invalid hash value.*Two ways out"
    with pytest.raises(ModelError, match=message):
        pretrained("imagenet")
    assert not list(cache.iterdir())


def test_cached_weights_file_is_not_trusted(imagenet, tmp_path):
    served, cache, requested = imagenet
    cache.mkdir(parents=True)
    malicious = saved({"a": MaliciousPickle(tmp_path / "owned")}, cache)
    (served / malicious.name).touch()
    with pytest.raises(ModelError, match="expected a state dict"):
        pretrained("imagenet")
    assert not requested
    assert not (tmp_path / "owned").exists()
