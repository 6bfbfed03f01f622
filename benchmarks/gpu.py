"""Speed on a GPU next to the limits of the GPU itself.

    python -m benchmarks.gpu [--batches 64 128 256] [--size 224] [--steps 10] [--device cuda]

First what the device can do: a large bfloat16 matrix product, and a copy of memory. Then ResNet-50
in the precision that `auto` gives: a training step on clean images, on N-FGSM and on PGD-10
examples; PGD-20 and the lean ensemble of params.yaml on random images, within an eps so small that
no image leaves early. Each in images a second, and which share of the matrix product's speed its
operations make.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.training import ROOT
from stages.attacks.apgd import apgd
from stages.attacks.attack import Attack, Noise
from stages.attacks.white_box import pgd
from stages.core.devices import make_fabric
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams, TrainAdvParams
from stages.core.params_file import load_params
from stages.models.batches import DatasetSplit
from stages.models.packed import for_attacks
from stages.models.weights import create_model
from stages.training import methods
from stages.training.epoch import StandardTraining, Training, train_epoch
from stages.training.optimizer import Learner

CLASSES = ("a", "b", "c")
TINY_EPS = 1e-6


def seconds(function: Callable[[], object], count: int, device: torch.device) -> float:
    """Mean over ``count`` calls after one to warm up."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    function()
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    synchronize()
    return (time.perf_counter() - start) / count


def device_limits(device: torch.device, side: int, copied_bytes: int) -> tuple[float, float]:
    """Speed of a bfloat16 matrix product of ``side`` and of a copy.

    In operations a second, and in bytes read and written a second.
    """
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    block = torch.empty(copied_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(block)
    product = seconds(lambda: a @ b, 20, device)
    return 2 * side**3 / product, 2 * copied_bytes / seconds(
        lambda: target.copy_(block), 20, device
    )


class OperationCounter(TorchDispatchMode):
    """Floating-point operations of what is called inside.

    FlopCounterMode fails on gradients with respect to an input.
    """

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count, and call."""
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function._overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


def random_images(count: int, size: int) -> DatasetSplit:
    """Images of noise, with labels in turn."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    return DatasetSplit(pixels, np.arange(count) % len(CLASSES), np.arange(count))


def training_epochs(
    fabric: Fabric, p: TrainAdvParams, split: DatasetSplit, batch: int
) -> Iterator[tuple[str, Callable[[DatasetSplit], object]]]:
    """(name, epoch on a split) of each way of training."""
    for name, method, attack_steps in (
        ("clean", None, 1),
        ("N-FGSM", "nfgsm", 1),
        ("PGD-10", "pgd", 10),
    ):
        q = p.model_copy(
            update={"batch_size": batch, "method": method or "nfgsm", "steps": attack_steps}
        )
        how = (
            methods.make_training_method(q, Budget.of("linf", 4 / 255))
            if method
            else StandardTraining(q)
        )
        model = create_model("resnet50", CLASSES, split.images.shape[1], "none", "none", 0)
        learner = Learner(fabric, model, q, 1000)
        training = Training(model, split, how, q, seed=0)
        yield (
            name,
            lambda part, learner=learner, training=training: train_epoch(
                dataclasses.replace(training, images=part), learner, 0
            ),
        )


def evaluation_attacks(
    fabric: Fabric, p: AttackEvalParams, split: DatasetSplit, batch: int
) -> Iterator[tuple[str, Callable[[DatasetSplit], object]]]:
    """(name, attack on a split, batch by batch) of PGD-20 and the lean ensemble."""
    model = create_model("resnet50", CLASSES, split.images.shape[1], "none", "none", 0).eval()
    fused = for_attacks(model.to(fabric.device), fabric)
    budget = Budget.of("linf", TINY_EPS)
    p = p.model_copy(update={"pgd_steps": 20, "pgd_restarts": 1})
    for name, attack in {"PGD-20": pgd, "ensemble": apgd}.items():

        def run(part: DatasetSplit, attack: Attack = attack) -> None:
            for positions in np.arange(len(part)).reshape(-1, batch):
                x, _ = part.load(positions, fabric.device)
                y = fused(x).argmax(1)  # its own prediction, so that each image has to be attacked
                with fabric.autocast():
                    attack.run(fused, x, y, budget, Noise(0, part.rows[positions], x), p)

        yield name, run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[64, 128, 256], help="images in a step"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--steps", type=int, default=10, help="steps timed")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA GPU, got none")
    params = load_params(ROOT / "params.yaml")
    fabric = make_fabric(params.runtime.model_copy(update={"device": options.device}))
    large = options.device == "cuda"
    limit, copied = device_limits(fabric.device, 8192 if large else 1024, 2**30 if large else 2**26)
    name = torch.cuda.get_device_name() if large else "CPU"
    print(f"torch {torch.__version__}, {name}, {fabric.strategy.precision.precision}")
    print(
        f"bfloat16 matrix product {limit / 1e12:.3g} TFLOP/s, memory copy {copied / 1e12:.3g} TB/s"
    )
    print(f"ResNet-50 at {options.size} pixels, mean of {options.steps} steps")
    for batch in options.batches:
        split = random_images(options.steps * batch, options.size)
        one = split.subset(np.arange(batch))
        runs = [*training_epochs(fabric, params.train_adv, split, batch)]
        runs += evaluation_attacks(fabric, params.attack_eval, split, batch)
        for title, run in runs:
            with OperationCounter() as counter:
                run(one)
            taken = seconds(lambda: run(split), 1, fabric.device) / options.steps  # noqa: B023
            memory = f", {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if large else ""
            share = counter.count / taken / limit
            print(
                f"  batch {batch:3} {title:9} {batch / taken:7.1f} images/s, "
                f"{share:4.0%} of the limit{memory}"
            )


if __name__ == "__main__":
    main()
