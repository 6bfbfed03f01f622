"""A new classifier: random weights, or a pretrained backbone from a file."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from stages.models.architectures import ModelError
from stages.models.classifier import Classifier, check_image_size, check_weights
from stages.models.imagenet import imagenet_weights
from stages.models.inference import predict_logits
from stages.models.weight_files import check_digest, read_state_dict


def create_model(
    arch: str, classes: tuple[str, ...], image_size: int, weights: str, sha256: str, seed: int
) -> Classifier:
    """A classifier with a fresh head and, unless ``weights`` is "none", a pretrained backbone.

    Args:
        arch: as `architectures.build` takes it.
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
        file = imagenet_weights(arch) if weights == "imagenet" else Path(weights)
        load_backbone(model, file, sha256)
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


def backbone_layers(model: Classifier, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of all layers but the head. Raises ModelError unless their layers are the same.

    Heads differ, and training scripts add modules of their own; but what has the name of a part of
    the backbone must be in it.
    """
    own, head = model.backbone.state_dict(), model.head + "."
    if "_conv_stem.weight" in state:
        # efficientnet_pytorch's names; timm has the same layers in the same order.
        state = dict(zip(own, state.values(), strict=False))
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
