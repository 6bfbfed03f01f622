"""A new classifier: random weights, or a pretrained backbone from a file or a download."""

import hashlib
import re
import zipfile
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet

from stages.models.classifier import Classifier, ModelError, check_image_size, check_weights
from stages.models.inference import predict_logits


def create_model(
    arch: str, classes: tuple[str, ...], image_size: int, weights: str, sha256: str, seed: int
) -> Classifier:
    """A classifier with a fresh head and, unless ``weights`` is "none", a pretrained backbone.

    Args:
        arch: a torchvision classification architecture.
        classes: names in the order of the logits.
        image_size: height and width in pixels.
        weights: "none", "imagenet", or the path of a state dict or safetensors file.
        sha256: of the file, or its first 8 digits or more; "none" where they end its name.
        seed: of the random weights.

    Raises:
        ModelError: for an unknown architecture, images too small for it, a file that is missing,
            corrupt or not identified by its digest, or weights of another architecture.
    """
    torch.manual_seed(seed)
    model = Classifier(arch, classes, image_size)
    check_image_size(model)
    if weights == "none":
        start_as_identity(model)
    else:
        load_backbone(model, download(arch) if weights == "imagenet" else Path(weights), sha256)
    return model


def start_as_identity(model: Classifier) -> None:
    """Zero the last norm of every residual block: a few epochs from scratch then suffice.

    Goyal et al., arXiv:1706.02677.
    """
    for block in model.backbone.modules():
        if isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
            last = block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)


def load_backbone(model: Classifier, file: Path, sha256: str) -> None:
    """Give all layers but the head the weights of a file.

    Raises:
        ModelError: when the file is missing, corrupt, of another architecture or of another digest.
    """
    if not file.is_file():
        raise ModelError(f"model.weights: expected none, imagenet or an existing file, got {file}")
    try:
        check_digest(file, sha256)
        pretrained = backbone_layers(model, read_state_dict(file))
        check_weights(pretrained)
        model.backbone.load_state_dict(pretrained, strict=False)
        # Finite numbers can still overflow in the network.
        generator, side = torch.Generator().manual_seed(0), model.image_size
        logits = predict_logits(model, torch.rand(2, 3, side, side, generator=generator))
        if not logits.isfinite().all():
            raise ModelError("expected weights that give finite logits, got NaN or infinity")
    except ModelError as error:
        raise ModelError(f"model.weights: {file}: {error}") from error


def sha256_in_name(file: Path) -> str:
    """The digits of the digest, 8 or more, that end the names of torchvision's files; or none."""
    return (re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name) or ["", ""])[1]


def check_digest(file: Path, sha256: str) -> None:
    """Raise ModelError unless params.yaml identifies the file: by ``sha256``, or by its name.

    DVC and the checkpoints know the parameters but not the file: without the digest, a result of
    other weights would pass for one of these.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = sha256_in_name(file) if sha256 == "none" else sha256.lower()
    if not expected:
        raise ModelError(
            "expected its SHA-256 in model.weights_sha256 or at the end of its name, got neither: "
            f"set model.weights_sha256 to {found}"
        )
    if len(expected) < 8 or not found.startswith(expected):
        raise ModelError(f"expected SHA-256 {expected} (8 digits or more), got {found}")


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a state dict that torch saved; no code in it is run."""
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            check_uncompressed(file)
            state = torch.load(file, "cpu", weights_only=True)
    # Each format has its own errors for a corrupt file; all mean the same to the user.
    except Exception as error:
        raise ModelError(f"expected a state dict or a safetensors file, got: {error}") from error
    for wrapper in ("state_dict", "model"):  # training scripts wrap the state dict
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ModelError(f"expected a state dict of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ModelError(
                f"expected a state dict of tensors, got {name!r}: {type(value).__name__}"
            )
    return {torchvision_name(name): tensor for name, tensor in state.items()}


def torchvision_name(name: str) -> str:
    """The name that torchvision gives a layer's tensor, of the name that a file gives it."""
    name = re.sub(r"^(module\.|model\.|backbone\.)+", "", name)  # wrappers of training scripts
    # torchvision's files of DenseNets are older than its names of their layers.
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def check_uncompressed(file: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than its size.

    torch compresses nothing; a zip bomb does.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > file.stat().st_size:
            raise ValueError(f"an archive that unpacks to {unpacked} bytes")


def backbone_layers(model: Classifier, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of all layers but the head. Raises ModelError unless their layers are the same.

    Heads differ, and training scripts add modules of their own; but what has the name of a part of
    the backbone must be in it.
    """
    own, head = model.backbone.state_dict(), model.head + "."
    required = [name for name in own if not name.startswith(head)]
    parts = {name.partition(".")[0] for name in own} - {head.partition(".")[0]}
    problems = {
        "another shape of": [n for n in required if n in state and state[n].shape != own[n].shape],
        # A file older than BatchNorm's counter of batches lacks only that counter.
        "no": [n for n in required if n not in state and not n.endswith("num_batches_tracked")],
        "also": [n for n in state if n not in own and n.partition(".")[0] in parts],
    }
    for problem, names in problems.items():
        if names:
            raise ModelError(
                f"expected the layers of {model.arch}, got {problem} {', '.join(sorted(names)[:3])}"
            )
    return {name: state[name] for name in required if name in state}


def download(arch: str) -> Path:
    """The file of torchvision's ImageNet weights in torch's cache, fetched if it isn't there."""
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            print(f"downloading {file.name}", flush=True)
            torch.hub.download_url_to_file(url, str(file), sha256_in_name(file), progress=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: of an incomplete download
        raise ModelError(
            f"model.weights: expected to download {file.name}, got: {error}. Two ways out: "
            f"put the file into {file.parent}, or set model.weights to its path (or to none)"
        ) from error
    return file
