"""Architectures by name: torchvision's, and timm's as ``timm/`` and timm's name."""

import difflib
from typing import Any, NamedTuple, cast

import torchvision
from torch import nn

from stages.core.errors import InputError

TIMM = "timm/"
TWO_HEADS = ("inception_v3", "googlenet")  # torchvision's that return two outputs in training
# Channel means and standard deviations of ImageNet: torchvision's weights were trained with them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ModelError(InputError):
    """An architecture, a weights file or a saved model is not what was expected."""


class Network(NamedTuple):
    """A network with random weights, and the normalization that its pretrained weights expect."""

    layers: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build(arch: str, classes: int) -> Network:
    """The network of an architecture, with random weights.

    Args:
        arch: a torchvision classification architecture, or ``timm/`` and the name of one of timm's,
            with or without the tag of its pretrained weights.
        classes: number of logits.

    Raises:
        ModelError: for an unknown architecture, or one without a single classifier at its end.
    """
    if arch.startswith(TIMM):
        return _build_timm(arch, classes)
    known = torchvision.models.list_models(module=torchvision.models, exclude=TWO_HEADS)
    if arch not in known:
        raise _unknown(arch, known)
    network = torchvision.models.get_model(arch, num_classes=classes)
    return Network(network, IMAGENET_MEAN, IMAGENET_STD)


def _build_timm(arch: str, classes: int) -> Network:
    import timm  # takes a second, which only its architectures shall cost

    name = arch.removeprefix(TIMM)
    # timm itself would also take the name of a repository, and download what describes it.
    if name not in timm.list_pretrained() and name not in timm.list_models():
        raise _unknown(arch, [TIMM + each for each in timm.list_models() + timm.list_pretrained()])
    network = timm.create_model(name, num_classes=classes)
    config = cast(dict[str, Any], network.pretrained_cfg)
    head, last = config.get("classifier"), last_layer(network)
    if head != last:
        raise ModelError(
            f"model.arch: expected an architecture with one classifier, its last layer, got {arch} "
            f"with the classifier {head} and the last layer {last}"
        )
    # Its initial size depends on the number of classes: of two, the first losses would be large
    # ones, and their gradients would spoil pretrained features.
    for parameter in network.get_submodule(last).parameters():
        nn.init.zeros_(parameter)
    return Network(network, config["mean"], config["std"])


def _unknown(arch: str, known: list[str]) -> ModelError:
    nearest = difflib.get_close_matches(arch, known, n=5)
    hint = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
    return ModelError(
        "model.arch: expected one of torchvision's classification architectures, or timm/ and one "
        f"of timm's, got {arch!r}{hint}"
    )


def last_layer(network: nn.Module) -> str:
    """Name of the last layer with weights, the one that gives the logits."""
    layers = network.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
