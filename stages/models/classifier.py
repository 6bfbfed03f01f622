"""The classifier: a network of torchvision's or timm's behind its own normalization."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict

from stages.core.files import write_bytes
from stages.models.architectures import ModelError, build, last_layer
from stages.models.convolutions import use_matmul
from stages.models.depthwise import use_float32


class _Config(TypedDict):
    """What rebuilds a model, in addition to its weights."""

    arch: str
    classes: tuple[str, ...]
    image_size: int


class Classifier(nn.Module):
    """Images in [0, 1] to float32 logits.

    Normalization is the first layer, so that all numbers outside the model (images, eps,
    perturbations) are in pixel units.

    Args:
        arch: as `architectures.build` takes it.
        classes: names in the order of the logits.
        image_size: height and width in pixels that it was made for.
    """

    def __init__(self, arch: str, classes: tuple[str, ...], image_size: int) -> None:
        super().__init__()
        self.arch, self.classes, self.image_size = arch, tuple(classes), image_size
        network = build(arch, len(classes))
        self.backbone = network.layers.to(memory_format=torch.channels_last)
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._frozen: list[nn.Module] = []
        use_matmul(self.backbone)
        use_float32(self.backbone)

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of x (B, 3, H, W) in [0, 1], as precise as x, also under autocast."""
        x = (x - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)  # fastest for convolutions
        return self.backbone(x).to(x.dtype)

    @property
    def head(self) -> str:
        """Name of the last layer with weights, the one that gives the logits."""
        return last_layer(self.backbone)

    def freeze(self, last: str) -> None:
        """Train only the layers of the backbone after the top-level layer ``last`` ("none": all).

        Frozen layers stay in eval mode, so that a BatchNorm keeps its running statistics, too.

        Raises:
            ModelError: when there is no such layer before the head.
        """
        layers = dict(self.backbone.named_children())
        names = list(layers)
        names = names[: names.index(self.head.partition(".")[0])]
        if last not in ("none", *names):
            raise ModelError(
                f"freeze: expected a layer before the head ({', '.join(names)}) or none, "
                f"got {last!r}"
            )
        frozen = [] if last == "none" else names[: names.index(last) + 1]
        self._frozen = [layers[name] for name in frozen]
        self.requires_grad_(True)
        for layer in self._frozen:
            layer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self


def check_image_size(model: Classifier) -> None:
    """Raise ModelError when images of that size are too small for the architecture.

    A convolution with a stride has nothing to look at in a single pixel, and in bfloat16 on a CPU
    torch 2.14.1 leaves most of its weight's gradient uninitialized.
    """
    starved: list[str] = []

    def record(name: str, inputs: tuple[Tensor, ...]) -> None:
        if max(inputs[0].shape[-2:]) == 1:
            starved.append(name)

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs))
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 and max(layer.kernel_size) > 1
    ]
    training, side = model.training, model.image_size
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"data.image_size: expected a size that {model.arch} can take, got {side}: {error}"
        ) from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if starved:
        raise ModelError(
            f"data.image_size: expected more than {side} for {model.arch}, got {side}: "
            f"its {starved[0]} would see one pixel"
        )


def save(path: Path, model: Classifier) -> None:
    """Write weights and what rebuilds the model as one safetensors file.

    The same model gives the same bytes.
    """
    config = {"arch": model.arch, "classes": model.classes, "image_size": model.image_size}
    # One metadata key only: safetensors writes several in no fixed order.
    metadata = {"config": json.dumps(config, sort_keys=True)}
    state = model.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def load(
    path: Path, classes: tuple[str, ...] | None = None, image_size: int | None = None
) -> Classifier:
    """The model of a file that ``save`` wrote, in eval mode.

    Raises:
        ModelError: when the file is missing, isn't such a file, or was made for other classes or
            another image size.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            config = TypeAdapter(_Config).validate_json((file.metadata() or {})["config"])
        tensors = safetensors.torch.load_file(path)
        model = Classifier(config["arch"], config["classes"], config["image_size"])
        check_weights(tensors)
        state = model.state_dict()  # carries the versions of its layers, which mnasnet asks for
        state.clear()
        state.update(tensors)
        model.load_state_dict(state)
    except (OSError, KeyError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{path}: expected a model that this pipeline saved, got: {error}"
        ) from error
    if classes is not None and model.classes != tuple(classes):
        raise ModelError(
            f"{path}: expected a model of the classes {', '.join(classes)}, "
            f"got {', '.join(model.classes)}"
        )
    if image_size is not None and model.image_size != image_size:
        raise ModelError(
            f"{path}: expected a model for {image_size} pixels, got {model.image_size}"
        )
    return model.eval()


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError unless all are finite floating-point numbers; counters may be whole."""
    for name, tensor in tensors.items():
        in_memory = not tensor.is_meta and tensor.layout == torch.strided
        counter = name.endswith("num_batches_tracked")
        if not in_memory or not (tensor.is_floating_point() or counter):
            raise ModelError(
                f"expected floating-point numbers for {name}, got {tensor.dtype} on {tensor.device}"
            )
        if not tensor.isfinite().all():
            raise ModelError(f"expected finite numbers for {name}, got NaN or infinity")


def describe(path: Path) -> dict[str, Any]:
    """What identifies a saved model, for the report."""
    model = load(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "arch": model.arch,
        "image_size": model.image_size,
        "parameters": parameters,
        "sha256": sha256,
    }
