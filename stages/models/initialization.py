"""A new classifier: with random weights, or with a pretrained backbone from a file or a download."""

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
        sha256: of that file, or "none".
        seed: of the random weights.

    Raises:
        ModelError: for an unknown architecture, images too small for it, a missing or corrupt file, or weights of another
            architecture.
    """
    torch.manual_seed(seed)
    model = Classifier(arch, classes, image_size)
    check_image_size(model)
    if weights == "none":
        # Every residual block starts as the identity (arXiv:1706.02677): from scratch, a few epochs then suffice.
        for block in model.backbone.modules():
            if isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
                nn.init.zeros_(
                    (block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2).weight
                )
        return model
    state = _read_weights(_download(arch) if weights == "imagenet" else Path(weights), sha256)
    own, head = model.backbone.state_dict(), model.head + "."
    required = {name for name in own if not name.startswith(head)}
    misshaped = sorted(
        name for name in required if name in state and state[name].shape != own[name].shape
    )
    # A checkpoint of before BatchNorm counted its batches lacks only that counter.
    missing = sorted(
        name for name in required - state.keys() if not name.endswith("num_batches_tracked")
    )
    # Training scripts add modules of their own, and heads differ; but the backbone has no further layer.
    parts = {name.partition(".")[0] for name in own} - {head.partition(".")[0]}
    unknown = sorted(name for name in state.keys() - own.keys() if name.partition(".")[0] in parts)
    for problem, names in (("another shape of", misshaped), ("no", missing), ("also", unknown)):
        if names:
            raise ModelError(
                f"model.weights: {weights}: expected the layers of {arch}, got {problem} {', '.join(names[:3])}"
            )
    pretrained = {name: state[name] for name in required if name in state}
    try:
        check_weights(pretrained)
    except ModelError as error:
        raise ModelError(f"model.weights: {weights}: {error}") from None
    model.backbone.load_state_dict(pretrained, strict=False)
    # Finite numbers can still overflow in the network.
    x = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not predict_logits(model, x).isfinite().all():
        raise ModelError(
            f"model.weights: {weights}: expected weights that give finite logits, got NaN or infinity"
        )
    return model


def _sha256_in_name(path: Path) -> str:
    """The first eight digits of it, by which torchvision names its files; else empty."""
    return (re.search(r"-([0-9a-f]{8})\.pth$", path.name) or ["", ""])[1]


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a state dict saved by torch, without running any code from the file."""
    if not path.is_file():
        raise ModelError(f"model.weights: expected none, imagenet or an existing file, got {path}")
    expected = sha256 if sha256 != "none" else _sha256_in_name(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise ModelError(f"model.weights: {path}: expected sha256 {expected}, got {found}")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            _check_uncompressed(path)
            state = torch.load(path, "cpu", weights_only=True)
    except (
        Exception
    ) as error:  # each format has its own errors for a corrupt file; all mean the same to the user
        raise ModelError(
            f"model.weights: {path}: expected a state dict or a safetensors file, got: {error}"
        ) from error
    for wrapper in ("state_dict", "model"):  # training scripts wrap the state dict
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        what = (
            ", ".join(map(str, list(state)[:5]))
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise ModelError(f"model.weights: {path}: expected a state dict of tensors, got {what}")
    names = {name: re.sub(r"^(module\.|model\.|backbone\.)+", "", name) for name in state}
    # torchvision's files of DenseNets are older than its names of their layers.
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", names[name]): state[name]
        for name in state
    }


def _check_uncompressed(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than its size: torch compresses nothing, a zip bomb does."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"an archive that unpacks to {unpacked} bytes")


def _download(arch: str) -> Path:
    """The file of torchvision's weights in torch's cache, fetched if it isn't there."""
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            print(f"downloading {file.name}", flush=True)
            torch.hub.download_url_to_file(url, str(file), _sha256_in_name(file), progress=True)
    except (
        URLError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: the hash of an incomplete download
        raise ModelError(
            f"model.weights: expected to download {file.name}, got: {error}. Two ways out: put the file into "
            f"{file.parent}, or set model.weights to its path (or to none)"
        ) from error
    return file
