"""Files of pretrained weights: identified by their digest, read without running code."""

import hashlib
import re
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from stages.models.architectures import ModelError


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
