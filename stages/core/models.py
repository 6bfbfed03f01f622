"""The classifier: any torchvision classification architecture behind its own normalisation."""

import copy
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import resnet

from stages.core.batchnorm import keep_statistics
from stages.core.errors import InputError

# Channel means and standard deviations of ImageNet: torchvision's weights were trained with them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ModelError(InputError):
    """An architecture, a weights file or a saved model is not what was expected."""


class Classifier(nn.Module):
    """Images in [0, 1] to float32 logits.

    Normalisation is the first layer, so that everything outside the model (attacks, budgets, pictures) is in pixel units.

    Args:
        arch: a torchvision classification architecture.
        classes: names in the order of the logits.
        image_size: height and width in pixels that it was made for.
    """

    def __init__(self, arch: str, classes: tuple[str, ...], image_size: int) -> None:
        super().__init__()
        known = torchvision.models.list_models(
            module=torchvision.models, exclude=("inception_v3", "googlenet")
        )  # no second head
        if arch not in known:
            raise ModelError(f"model.arch: expected one of {', '.join(known)}, got {arch!r}")
        self.arch, self.classes, self.image_size = arch, tuple(classes), image_size
        self.backbone = torchvision.models.get_model(arch, num_classes=len(classes)).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) in [0, 1] -> logits (B, K) as precise as x, also under autocast."""
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)  # fastest for convolutions
        return self.backbone(x).to(x.dtype)

    @property
    def head(self) -> str:
        """Name of the last linear layer, the one that gives the logits."""
        return [name for name, layer in self.backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]

    def freeze(self, last: str) -> None:
        """Stop training every layer of the backbone up to and including the top-level layer ``last`` ("none": train all).

        A frozen BatchNorm keeps its running statistics too: frozen layers stay in eval mode.
        """
        layers = dict(self.backbone.named_children())
        if last != "none" and last not in layers:
            raise ModelError(f"freeze: expected none or one of {', '.join(layers)}, got {last!r}")
        names = list(layers)
        self._frozen = [layers[name] for name in names[: names.index(last) + 1]] if last != "none" else []
        self.requires_grad_(True)
        for layer in self._frozen:
            layer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self


def folded(model: Classifier) -> Classifier:
    """A copy to craft attacks on, in eval mode, every BatchNorm folded into the convolution before it.

    The same function up to rounding, and cheaper to differentiate.
    """
    twin = copy.deepcopy(model).eval()
    keep_statistics(twin)
    twin.backbone = fuse(twin.backbone)
    return twin


def _sha256_in_name(path: Path) -> str:
    """The first eight digits of it, by which torchvision names its files; else empty."""
    return (re.search(r"-([0-9a-f]{8})\.pth$", path.name) or ["", ""])[1]


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a state dict saved by torch, without running any code from the file."""
    if not path.is_file():
        raise ModelError(f"model.weights: expected none, imagenet or an existing file, got {path}")
    wanted = sha256 if sha256 != "none" else _sha256_in_name(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(wanted):
        raise ModelError(f"model.weights: {path}: expected sha256 {wanted}, got {found}")
    try:
        state = (
            safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # each format has its own errors for a broken file; all mean the same to the user
        raise ModelError(f"model.weights: {path}: expected a state dict or a safetensors file, got: {error}") from error
    for wrapper in ("state_dict", "model"):  # training scripts wrap the state dict
        state = state.get(wrapper, state)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"model.weights: {path}: expected a state dict of tensors, got {sorted(state)[:5]}")
    names = {name: re.sub(r"^(module\.|model\.|backbone\.)+", "", name) for name in state}
    # torchvision's files of DenseNets are older than its names of their layers.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", names[name]): state[name] for name in state}


def _download(arch: str) -> Path:
    """The file of torchvision's weights in torch's cache, fetched if it isn't there."""
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            print(f"downloading {file.name}", flush=True)
            torch.hub.download_url_to_file(url, str(file), _sha256_in_name(file), progress=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the hash of a broken download
        raise ModelError(
            f"model.weights: expected to download {file.name}, got: {error}. Two ways out: put the file into "
            f"{file.parent}, or set model.weights to its path (or to none)"
        ) from error
    return file


def build(arch: str, classes: tuple[str, ...], image_size: int, weights: str, sha256: str, seed: int) -> Classifier:
    """A classifier with a fresh head and, unless ``weights`` is "none", a pretrained backbone.

    Raises ModelError for an unknown architecture, a missing or broken file, or weights of another architecture.
    """
    torch.manual_seed(seed)
    model = Classifier(arch, classes, image_size)
    if weights == "none":
        # Every residual block starts as the identity (arXiv:1706.02677): from scratch, a few epochs then suffice.
        for block in model.backbone.modules():
            if isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
                nn.init.zeros_((block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2).weight)
        return model
    state = _read_weights(_download(arch) if weights == "imagenet" else Path(weights), sha256)
    own, head = model.backbone.state_dict(), model.head + "."
    wanted = {name for name in own if not name.startswith(head)}
    wrong = sorted(n for n in wanted if n in state and state[n].shape != own[n].shape) or sorted(wanted - state.keys())
    # A checkpoint of before BatchNorm counted its batches lacks only that counter.
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ModelError(
            f"model.weights: {weights}: expected the layers of {arch}, got none or another shape for {', '.join(wrong[:3])}"
        )
    model.backbone.load_state_dict({n: state[n] for n in wanted if n in state}, strict=False)
    return model


def save(path: Path, model: Classifier) -> None:
    """Write weights and what rebuilds the model as one safetensors file; the same model gives the same bytes."""
    config = {"arch": model.arch, "classes": model.classes, "image_size": model.image_size}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    # One metadata key only: safetensors writes several in no fixed order.
    temporary.write_bytes(safetensors.torch.save(tensors, {"config": json.dumps(config, sort_keys=True)}))
    os.replace(temporary, path)


def load(path: Path, classes: tuple[str, ...] | None = None, image_size: int | None = None) -> Classifier:
    """The model of a file that ``save`` wrote, in eval mode.

    Raises ModelError when the file is missing, isn't such a file, or was made for other classes or another image size.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            config: dict[str, Any] = json.loads((file.metadata() or {})["config"])
        tensors = safetensors.torch.load_file(path)
        model = Classifier(config["arch"], tuple(config["classes"]), config["image_size"])
        model.load_state_dict(tensors)
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: expected a model that this pipeline saved, got: {error}") from error
    if classes is not None and model.classes != tuple(classes):
        raise ModelError(f"{path}: expected a model of the classes {', '.join(classes)}, got {', '.join(model.classes)}")
    if image_size is not None and model.image_size != image_size:
        raise ModelError(f"{path}: expected a model for {image_size} pixels, got {model.image_size}")
    return model.eval()
