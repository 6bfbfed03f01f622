"""Time and strength of our attacks next to the libraries', on the same models and images.

    python -m benchmarks.attacks [--images 64] [--steps 100] [--queries 1000] [--project .]

For each of data/models/{clean,adv}.safetensors, on test images of data/processed, at attack.eps of
params.yaml:

    PGD-20        foolbox's LinfPGD, ART's (where it is installed), and ours: same step size, one
                  random start
    ensemble      pyautoattack's own run of the attacks that work with these classes, and ours:
                  PGD-20 first, then the lean ensemble of params.yaml on what is left

Speed without strength means nothing, so the number of images still classified correctly is reported
next to the time. Every program runs once on a few images before it is timed, in turn on the same
cores, so the ratios hold where the times don't. ART isn't among the development requirements:
install adversarial-robustness-toolbox in an environment of its own.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import foolbox
import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from stages.attacks.attack import Attack
from stages.attacks.registry import LEAN_ENSEMBLE
from stages.attacks.verifier import check_within_budget
from stages.attacks.white_box import pgd
from stages.core.dataset import load_dataset
from stages.core.devices import make_fabric
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.core.params_file import load_params
from stages.measurements.target import Batch, TargetModel
from stages.measurements.threads import equal_parts, run_in_threads
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.inference import predict_logits

PGD_STEPS, WARM_UP = 20, 4

Run = Callable[[Tensor, Tensor], Tensor]


def timed(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Seconds, and how many images the model itself still classifies correctly in float32."""
    run(x[:WARM_UP], y[:WARM_UP])
    start = time.perf_counter()
    x_adv = run(x, y)
    seconds = time.perf_counter() - start
    return seconds, int((predict_logits(model, x_adv).argmax(1) == y).sum())


def foolbox_pgd(model: nn.Module, eps: float) -> Run:
    oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=2.5 * eps / PGD_STEPS, steps=PGD_STEPS, random_start=True
    )
    return lambda x, y: attack(oracle, x, y, epsilons=eps)[1]


def perturb(
    target: TargetModel, batch: Batch, attack: Attack, budget: Budget, p: AttackEvalParams
) -> dict[str, Tensor]:
    with target.fabric.autocast():
        return {"x": attack.run(target.fused_model, batch.x, batch.y, budget, batch.noise, p)}


def ours(
    target: TargetModel, attacks: Sequence[Attack], budget: Budget, p: AttackEvalParams
) -> Run:
    """One attack after the other, each on what is still classified correctly, as the suite does."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        found = x.clone()  # the first images of the split
        for attack in attacks:
            left = (predict_logits(target.fused_model, found).argmax(1) == y).nonzero().squeeze(1)
            left = left[: p.subset] if attack.on_subset else left
            if not len(left):
                break
            parts = equal_parts(left.cpu().numpy(), p.batch_size)
            batches = run_in_threads(perturb, target, parts, attack, budget, p)
            found[left] = torch.cat([batch["x"] for batch in batches]).to(x.device)
        check_within_budget(x, found, budget)
        return found

    return run


def art_pgd(model: nn.Module, classes: int, eps: float) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    device = next(model.parameters()).device
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (3, model.image_size, model.image_size),
        classes,
        clip_values=(0, 1),
        device_type=device.type,
    )
    how = {
        "norm": np.inf,
        "eps": eps,
        "eps_step": 2.5 * eps / PGD_STEPS,
        "max_iter": PGD_STEPS,
        "num_random_init": 1,
    }

    def run(x: Tensor, y: Tensor) -> Tensor:
        attack = ProjectedGradientDescentPyTorch(estimator, **how, batch_size=len(x), verbose=False)
        return torch.from_numpy(attack.generate(x.contiguous().cpu().numpy(), y.cpu().numpy())).to(
            x.device
        )

    return run


def library_ensemble(model: nn.Module, classes: int, eps: float, steps: int, queries: int) -> Run:
    """The library's own run.

    With fewer than four classes its targeted APGD can't run, so untargeted DLR takes its place.
    """
    oracle = AutoAttack(
        model, eps=eps, seed=0, version="custom", device=next(model.parameters()).device
    )
    oracle.attacks_to_run = ["apgd-ce", "apgd-t" if classes >= 4 else "apgd-dlr", "fab-t", "square"]
    how = {
        "n_iter": steps,
        "norm": "Linf",
        "eps": eps,
        "seed": 0,
        "device": oracle.device,
        "logger": oracle.logger,
    }
    oracle.apgd = APGDAttack(model, n_restarts=1, **how)
    targets = min(9, classes - 1)
    oracle.apgd_targeted = APGDAttack_targeted(model, n_restarts=1, n_target_classes=targets, **how)
    oracle.fab.n_iter, oracle.fab.n_target_classes, oracle.square.n_queries = (
        steps,
        targets,
        queries,
    )
    return lambda x, y: oracle.run_standard_evaluation(x.contiguous(), y)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, default=100, help="of the library: iterations of APGD and FAB-T"
    )
    parser.add_argument(
        "--queries", type=int, default=1000, help="of the library: queries of Square"
    )
    parser.add_argument(
        "--project", type=Path, default=Path("."), help="folder with data/ and params.yaml"
    )
    options = parser.parse_args()
    params = load_params(options.project / "params.yaml")
    dataset = load_dataset(options.project / "data/processed")
    fabric = make_fabric(params.runtime)
    test = DatasetSplit.from_dataset(dataset, "test")
    test = test.subset(test.stratified_positions(options.images, params.seed))
    x, y = test.load(np.arange(len(test)), fabric.device)
    classes, eps = len(dataset.classes), params.attack.eps
    budget = Budget.of("linf", eps)
    with_art = find_spec("art") is not None
    names = (
        "torch",
        "foolbox",
        "pyautoattack",
        *(["adversarial-robustness-toolbox"] if with_art else []),
    )
    print(
        f"{', '.join(f'{name} {version(name)}' for name in names)}, "
        f"Python {platform.python_version()}"
    )
    print(
        f"{fabric.device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"n = {len(x)} images of {x.shape[-1]} pixels, linf, eps = {eps * 255:g}/255")
    p = params.attack_eval.model_copy(update={"pgd_steps": PGD_STEPS, "pgd_restarts": 1})
    print(
        f"ensemble: pyautoattack {options.steps} iterations, {options.queries} queries; "
        f"ours {p.aa_steps} and {p.aa_queries}"
    )

    for name in ("clean", "adv"):
        file = options.project / f"data/models/{name}.safetensors"
        if not file.exists():
            print(f"{name}: {file} expected the pipeline's model file, got none")
            continue
        model = classifier.load(file, dataset.classes, x.shape[-1])
        target = TargetModel.of(model, fabric, test, p.batch_size, params.seed)
        correct = int((predict_logits(model, x).argmax(1) == y).sum())
        print(
            f"{name}: {model.arch}, {correct} of {len(x)} images "
            "classified correctly without attack"
        )
        art = {"ART": art_pgd(model, classes, eps)} if with_art else {}
        rivals = {
            f"PGD-{PGD_STEPS}": {
                "foolbox": foolbox_pgd(model, eps),
                **art,
                "ours": ours(target, [pgd], budget, p),
            },
            "ensemble": {
                "pyautoattack": library_ensemble(
                    model, classes, eps, options.steps, options.queries
                ),
                "ours": ours(target, [pgd, *LEAN_ENSEMBLE], budget, p),
            },
        }
        for title, programs in rivals.items():
            results = {program: timed(run, model, x, y) for program, run in programs.items()}
            our_seconds, _ = results["ours"]
            for program, (seconds, left) in results.items():
                print(
                    f"  {title:9} {program:13} {seconds:8.2f} s, {left:3} robust, "
                    f"relative time {seconds / our_seconds:.1f}"
                )


if __name__ == "__main__":
    main()
