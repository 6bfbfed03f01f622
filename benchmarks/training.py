"""Speed of training: ours next to the usual notebook loop, on the CPU (gpu.py is for a GPU).

    python -m benchmarks.training [--images 256] [--size 56] [--batch 32] [--rounds 2]

Trains ResNet-50 on the sample's JPEGs, one clean epoch and one on FGSM examples, after a few steps
to warm up; best of rounds.

    usual   ImageFolder, Resize, ToTensor, Normalize, DataLoader (no workers), float32; FGSM by
            .backward() on the loss
    ours    training.epoch.train_epoch on the uint8 array of the same images, in the precision that
            `auto` gives
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from stages.core.devices import make_fabric
from stages.core.norms import Budget
from stages.core.params import TrainAdvParams
from stages.core.params_file import load_params
from stages.models.architectures import IMAGENET_MEAN, IMAGENET_STD
from stages.models.batches import DatasetSplit
from stages.models.weights import create_model
from stages.training import methods
from stages.training.epoch import StandardTraining, Training, train_epoch
from stages.training.optimizer import Learner

ROOT = Path(__file__).parents[1]

EPS = 8 / 255


def is_whole(path: str) -> bool:
    """Whether the notebook's loop could read the file: the sample holds broken ones on purpose."""
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except OSError:
        return False
    return path.endswith(".jpg")


def timed(function: Callable[[], object], rounds: int) -> float:
    """Seconds, the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def usual_epoch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, attacked: bool
) -> None:
    model.train()
    low = ((torch.zeros(3) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).view(
        3, 1, 1
    )
    high = ((torch.ones(3) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).view(
        3, 1, 1
    )
    step = EPS / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for x, y in loader:
        if attacked:
            x.requires_grad_(True)
            F.cross_entropy(model(x), y).backward()
            x = torch.clamp(x + step * x.grad.sign(), low, high).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def compare(p: TrainAdvParams, size: int, images: int, rounds: int) -> None:
    """Images a second of both loops on one machine in one run."""
    usual = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    folder = ImageFolder(str(ROOT / "data/sample/train/train"), usual, is_valid_file=is_whole)
    chosen = np.random.default_rng(0).permutation(len(folder))[:images]
    chosen = chosen[: len(chosen) // p.batch_size * p.batch_size]
    loader = DataLoader(Subset(folder, chosen.tolist()), p.batch_size, shuffle=True)
    start = time.perf_counter()
    pixels = [
        Image.open(folder.samples[i][0])
        .convert("RGB")
        .resize((size, size), Image.Resampling.BILINEAR)
        for i in chosen
    ]
    split = DatasetSplit(
        np.stack([np.asarray(image) for image in pixels]),
        np.array(folder.targets)[chosen],
        np.arange(len(chosen)),
    )
    stored = time.perf_counter() - start

    classes, short = tuple(folder.classes), slice(2 * p.batch_size)
    usual_seconds = {}
    for name in ("clean", "FGSM"):
        model = torchvision.models.resnet50(num_classes=len(classes))
        optimizer = torch.optim.SGD(model.parameters(), p.lr, momentum=0.9)
        usual_epoch(
            model,
            optimizer,
            DataLoader(Subset(folder, chosen[short].tolist()), p.batch_size),
            name == "FGSM",
        )
        usual_seconds[name] = timed(
            partial(usual_epoch, model, optimizer, loader, name == "FGSM"), rounds
        )

    # Only now: it switches to deterministic algorithms, which the notebook doesn't ask for.
    fabric = make_fabric(
        load_params(ROOT / "params.yaml").runtime.model_copy(update={"device": "cpu"})
    )
    print(
        f"ResNet-50, {len(chosen)} JPEGs at {size} pixels, batch {p.batch_size}, "
        f"{torch.get_num_threads()} threads,"
    )
    print(
        f"best of {rounds}; ours in {fabric.strategy.precision.precision}, "
        f"its images decoded in {stored:.1f} s (not counted)"
    )
    print("images/s       baseline   ours  speed-up")
    for name, usual_time in usual_seconds.items():
        method = (
            methods.make_training_method(p, Budget.of("linf", EPS))
            if name == "FGSM"
            else StandardTraining(p)
        )
        model = create_model("resnet50", classes, size, "none", "none", 0)
        learner = Learner(fabric, model, p, 1000)
        warm_up = DatasetSplit(split.images, split.labels, split.rows[short])
        train_epoch(Training(model, warm_up, method, p, seed=0), learner, 0)
        training = Training(model, split, method, p, seed=0)
        ours = timed(partial(train_epoch, training, learner, 0), rounds)
        print(
            f"  {name:13} {len(chosen) / usual_time:7.1f} {len(chosen) / ours:7.1f} "
            f"{usual_time / ours:6.2f}x"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="JPEGs of an epoch")
    parser.add_argument("--size", type=int, default=56, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--rounds", type=int, default=2, help="epochs timed")
    arguments = parser.parse_args()
    p = load_params(ROOT / "params.yaml").train_adv
    p = p.model_copy(update={"batch_size": arguments.batch, "method": "fgsm", "eps_ramp": 0.0})
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores,"
    )
    print(f"load before the run {loads}")
    compare(p, arguments.size, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
