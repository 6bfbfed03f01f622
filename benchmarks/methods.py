"""Methods of adversarial training compared: clean and robust accuracy, time in clean epochs.

    python -m benchmarks.methods [--methods nfgsm pgd ...] [--seeds 3] [--epochs 5]
                                 [--weights data/models/clean.safetensors]
    python -m benchmarks.methods --arch resnet18 --size 32 --seeds 1 --epochs 2     # minutes
    python -m benchmarks.methods --methods as-set full-eps half-clean               # fine-tuning

Needs data/processed (dvc repro preprocess). Every method starts from the same clean weights,
trained first unless given, and follows train_adv in params.yaml but for its own settings below.
Accuracy is on **validation** photographs, which also chose the epoch, by PGD-10 on all of them: it
compares methods and is no estimate for new patients. Worst case: every attack of the pipeline at
attack.eps, per image. Zero gradient: the fraction of photographs that a gradient attack can't move
(diagnostic D5): there a high accuracy is gradient masking. Time is that of a method's steps alone,
over a clean epoch's, in the same run with the same settings.
"""

import argparse
import copy
import dataclasses
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from stages.core.checkpoints import Checkpoint
from stages.core.dataset import ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.norms import Budget
from stages.core.params import Params, TrainingParams
from stages.core.params_file import load_params
from stages.core.predictions import is_correct, select, worst_case
from stages.measurements import suite
from stages.measurements.context import Context
from stages.measurements.model_checks import zero_gradients
from stages.measurements.steps import Steps
from stages.measurements.target import TargetModel
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.models.weights import create_model
from stages.training import methods
from stages.training.epoch import StandardTraining, Training, TrainingMethod, train_epoch
from stages.training.loop import fit
from stages.training.optimizer import Learner
from stages.training.validation import RobustValidation, StandardValidation, Validation

ROOT = Path(__file__).parents[1]

METHODS: dict[str, dict[str, Any]] = {
    "fgsm": {"method": "fgsm"},
    "fgsm_rs": {"method": "fgsm_rs", "alpha_rel": 1.25},
    "nfgsm": {"method": "nfgsm", "alpha_rel": 1.0},
    "nfgsm+awp": {"method": "nfgsm", "alpha_rel": 1.0, "awp": 0.01},
    "free": {"method": "free", "alpha_rel": 1.0, "steps": 4},
    "pgd": {"method": "pgd", "alpha_rel": 0.25, "steps": 10},
    "trades": {"method": "trades", "alpha_rel": 0.25, "steps": 10, "beta": 6.0},
    "mart": {"method": "mart", "alpha_rel": 0.25, "steps": 10, "beta": 5.0},
}
# Ways to fine-tune pretrained weights, with params.photographs.yaml as params.yaml.
FINE_TUNING: dict[str, dict[str, Any]] = {
    "as-set": {},
    "half-lr": {"lr": 0.05},
    "twice-lr": {"lr": 0.2},
    "adamw": {"optimizer": "adamw", "lr": 0.0007, "weight_decay": 0.05},
    "slow-backbone": {"backbone_lr": 0.1},
    "full-eps": {"eps_ramp": 0.0},
    "four-steps": {"steps": 4, "alpha_rel": 0.4},
    "half-clean": {"clean_share": 0.5},
    "trades-beta1": {"method": "trades", "beta": 1.0},
    "trades-beta6": {"method": "trades", "beta": 6.0},
}
SETTINGS = METHODS | FINE_TUNING
TIMED_STEPS = 20
SHARES = ("clean", "worst case", "zero gradient")  # of the validation images


def shrunk(dataset: ImageDataset, size: int) -> ImageDataset:
    """The same photographs at another size."""
    if size == dataset.images.shape[1]:
        return dataset
    x = torch.from_numpy(np.array(dataset.images)).permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    small = F.interpolate(x, (size, size), mode="area").round().byte().permute(0, 2, 3, 1)
    return dataclasses.replace(dataset, images=small.numpy())


def train(
    fabric: Fabric,
    model: Classifier,
    dataset: ImageDataset,
    p: TrainingParams,
    method: TrainingMethod,
    eps: float,
    seed: int,
) -> None:
    """``fit`` as the stages call it; the model gets the selected weights."""
    kind = StandardValidation if method.eps == 0 else SelectsByRobustAccuracy
    validation = kind(
        DatasetSplit.from_dataset(dataset, "val"), Budget.of("linf", eps), p.val_steps, p.val_images
    )
    training = Training(model, DatasetSplit.from_dataset(dataset, "train"), method, p, seed)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Checkpoint("benchmark", "methods")
        checkpoint.folder = Path(name)
        fit(fabric, training, validation, checkpoint, on_epoch=lambda row: None)


class SelectsByRobustAccuracy(RobustValidation):
    """Without the checks for overfitting, whose time isn't a method's, and without stopping."""

    image_metrics = Validation.image_metrics
    history_metrics = Validation.history_metrics
    stop_reason = Validation.stop_reason


def seconds_of_an_epoch(
    fabric: Fabric,
    model: Classifier,
    dataset: ImageDataset,
    p: TrainingParams,
    method: TrainingMethod,
) -> float:
    """Of the steps alone, at the full budget, on a copy of the weights; from TIMED_STEPS of them.

    The better of two runs.
    """
    model, steps, best = copy.deepcopy(model), copy.copy(method), float("inf")
    steps.eps_ramp = 0.0
    images = DatasetSplit.from_dataset(dataset, "train")
    timed = images.subset(np.arange(min(len(images), TIMED_STEPS * p.batch_size)))
    training, learner = Training(model, timed, steps, p, seed=0), Learner(fabric, model, p, 10**6)
    for epoch in range(2):
        start = time.perf_counter()
        train_epoch(training, learner, epoch)
        best = min(best, time.perf_counter() - start)
    return best * len(images) / len(timed)


def measure(
    fabric: Fabric, model: Classifier, dataset: ImageDataset, params: Params, seed: int
) -> tuple[float, float, float]:
    """On the validation images: clean accuracy, robust accuracy, fraction with zero gradient."""
    split, p = DatasetSplit.from_dataset(dataset, "val"), params.attack_eval
    target = TargetModel.of(model.eval(), fabric, split, p.batch_size, seed)
    attack = params.attack.model_copy(update={"eps_grid": ()})
    context = Context(attack, p, dataset, {"adv": target}, None, Steps(fabric))
    rows = suite.run(context)["predictions"]
    zero, _ = zero_gradients(target.model, target.load(target.everything), attack.budget)
    return is_correct(select(rows)).mean(), is_correct(worst_case(rows)).mean(), zero


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument(
        "--epochs", type=int, help="of adversarial training; train_adv.epochs if not given"
    )
    parser.add_argument("--arch", help="model.arch if not given")
    parser.add_argument("--size", type=int, help="pixels; the dataset's if not given")
    parser.add_argument(
        "--weights", type=Path, help="clean model to start from; trained here if not given"
    )
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    dataset = load_dataset(ROOT / "data/processed")
    dataset = shrunk(dataset, arguments.size or dataset.images.shape[1])
    fabric = make_fabric(params.runtime)
    base = params.train_adv.model_copy(
        update={
            "epochs": arguments.epochs or params.train_adv.epochs,
            "val_images": len(
                DatasetSplit.from_dataset(dataset, "val")
            ),  # few would choose an epoch by luck, and compare luck
            "val_steps": 10,
        }
    )
    eps, size = params.attack.eps, dataset.images.shape[1]

    rows = []
    for seed in range(arguments.seeds):
        if arguments.weights:
            clean = classifier.load(arguments.weights, dataset.classes, size)
        else:
            clean = create_model(
                arguments.arch or params.model.arch,
                dataset.classes,
                size,
                params.model.weights,
                params.model.weights_sha256,
                seed,
            )
            standard = StandardTraining(params.train_clean)
            train(fabric, clean, dataset, params.train_clean, standard, eps, seed)
        rows.append(("clean", seed, *measure(fabric, clean, dataset, params, seed), 1.0))
        unit = seconds_of_an_epoch(fabric, clean, dataset, base, StandardTraining(base))
        for name in arguments.methods:
            p = base.model_copy(update=SETTINGS[name])
            method = methods.make_training_method(p, Budget.of("linf", eps))
            taken = seconds_of_an_epoch(fabric, clean, dataset, p, method)
            model = copy.deepcopy(clean)
            train(fabric, model, dataset, p, method, eps, seed)
            rows.append((name, seed, *measure(fabric, model, dataset, params, seed), taken / unit))
            print(
                f"{name}, seed {seed}: clean {rows[-1][2]:.3f}, worst case {rows[-1][3]:.3f}, "
                f"zero gradient {rows[-1][4]:.3f}, {rows[-1][5]:.2f} clean epochs",
                flush=True,
            )

    table = pd.DataFrame(rows, columns=["method", "seed", *SHARES, "time"])
    loads, n = (
        ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        len(DatasetSplit.from_dataset(dataset, "val")),
    )
    print(
        f"\ntorch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, load {loads}; "
        f"{clean.arch}, {size} pixels,"
    )
    print(
        f"eps {eps * 255:g}/255, {base.epochs} epochs, {arguments.seeds} seeds, "
        f"n = {n} validation images;"
    )
    print(
        "mean (least-most) in %; time in clean epochs\n\n"
        f"| method | {' | '.join(SHARES)} | time |\n|---|---|---|---|---|"
    )
    for name, group in table.groupby("method", sort=False):
        cells = [
            f"{100 * group[c].mean():.1f} ({100 * group[c].min():.1f}-{100 * group[c].max():.1f})"
            for c in SHARES
        ]
        print(f"| {name} | {' | '.join(cells)} | {group['time'].mean():.2f} |")


if __name__ == "__main__":
    main()
