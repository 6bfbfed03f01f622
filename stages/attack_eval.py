"""Evaluate one model under all attacks and eps values.

Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors, for adv also clean.safetensors.  Writes data/predictions/<model>/, whose
files predictions.py describes. Only here does a model see the test split. Resumes after an interruption.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from lightning_fabric import Fabric
from torch import Tensor

from stages.attacks.corruptions import evaluate_corruptions
from stages.attacks.examples import perturbation_picture, save_examples, save_png, select_examples
from stages.attacks.gradients import gradient_shares
from stages.attacks.minimum_eps import find_minimum_eps
from stages.attacks.runner import (
    ModelUnderAttack,
    pgd_on,
    run_attack_suite,
    run_calibration,
    run_transfer_attacks,
)
from stages.attacks.sanity_checks import run_sanity_checks
from stages.attacks.suite import eps_sweep_attack
from stages.attacks.universal import add_perturbation, cached_universal_perturbation
from stages.core.checkpoints import Checkpoint, StepCache, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST, ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.files import write_json
from stages.core.params import AttackEvalParams, AttackParams, StageParams
from stages.core.params_file import load_stage_params
from stages.core.paths import MODELS, PREDICTIONS, PROCESSED, weights_path
from stages.core.predictions import (
    SURROGATE,
    TRANSFER,
    UNIVERSAL,
    UNIVERSAL_TRANSFER,
    write_predictions,
    write_table,
    write_transfer,
)
from stages.core.processes import run_cli
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.tracking.stage_logging import log_stage


class Params(StageParams):
    """What this stage reads of params.yaml."""

    attack: AttackParams
    attack_eval: AttackEvalParams


def main(model: str) -> pd.DataFrame:
    """Run the stage; returns predictions.csv."""
    p = load_stage_params(Params)
    dataset = load_dataset(PROCESSED)
    names = {"clean": ["clean"], "adv": ["adv", "clean"]}[
        model
    ]  # the clean model is attacked before the other one exists
    # Before any further process is started: what is wrong with the files is said once.
    files = {name: weights_path(name) for name in names}
    if p.attack_eval.surrogate != "none":
        files[SURROGATE] = Path(p.attack_eval.surrogate)
    networks = {
        name: classifier.load(file, dataset.classes, dataset.image_size)
        for name, file in files.items()
    }
    test, fabric = DatasetSplit.from_dataset(dataset, "test"), make_fabric(p.runtime)
    models = {
        name: model_under_attack(network, test, p, fabric) for name, network in networks.items()
    }
    surrogate = models.pop(SURROGATE, None)
    target = models[model]
    subset = target.stratified_positions(p.attack_eval.subset)

    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST, *files.values()]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint(f"attack_eval_{model}", fingerprint).lock(fabric) as checkpoint:
        cache = StepCache(checkpoint, fabric)
        validation = {
            name: replace(m, split=DatasetSplit.from_dataset(dataset, "val"))
            for name, m in models.items()
        }
        patterns = {
            name: cached_universal_perturbation(m, p.attack.eps, cache, name)
            for name, m in validation.items()
        }
        prepared = {UNIVERSAL: (add_perturbation(patterns[model]), 0)}
        prepared |= {SURROGATE: pgd_on(surrogate, p.attack_eval.curve_steps)} if surrogate else {}
        table, ensemble = run_attack_suite(
            target, dataset, p.attack, p.attack_eval, cache, prepared
        )
        calibration = run_calibration(validation[model], dataset, p.attack, p.attack_eval, cache)
        minimum_eps = find_minimum_eps(target, dataset, subset, table, p.attack_eval, cache)
        pgd, _ = eps_sweep_attack(p.attack_eval, norm=p.attack.norm)
        corruptions = evaluate_corruptions(target, dataset, pgd, p.attack.eps, cache)
        gradients = gradient_shares(target, dataset, cache)
        checks = cache.get_or_compute(
            "diagnostics", lambda: _sanity_checks(target, subset, table, p)
        )
        transfer = _transfer(models, patterns, dataset, p, cache) if len(models) > 1 else None
        second = _second_norm(target, dataset, p, cache)
        if fabric.is_global_zero:
            folder = PREDICTIONS / model
            write_predictions(table, folder)
            write_predictions(calibration, folder, "calibration")
            write_json(folder / "model.json", classifier.describe(weights_path(model)))
            write_json(folder / "ensemble.json", ensemble)
            write_table("minimum_eps", minimum_eps, folder)
            write_table("corruptions", corruptions, folder)
            write_table("gradients", gradients, folder)
            write_json(folder / "diagnostics.json", checks["results"])
            if transfer is not None:
                write_transfer(transfer, folder)
            if second is not None:
                write_predictions(second, folder, "second_norm")
            save_png(perturbation_picture(patterns[model]), folder / "universal.png")
            examples = select_examples(table, p.attack_eval.examples)
            save_examples(
                models, dataset, examples, p.attack.eps, p.attack_eval, folder / "examples"
            )
            log_stage(f"attack_eval@{model}", p)
    return table


def _transfer(
    models: dict[str, ModelUnderAttack],
    patterns: dict[str, Tensor],
    dataset: ImageDataset,
    p: Params,
    cache: StepCache,
) -> pd.DataFrame:
    """transfer.csv: each model under PGD on the other one, and under its universal perturbation."""
    attacks = {
        TRANSFER: {
            name: pgd_on(source, p.attack_eval.curve_steps) for name, source in models.items()
        },
        UNIVERSAL_TRANSFER: {
            name: (add_perturbation(pattern), 0) for name, pattern in patterns.items()
        },
    }
    return run_transfer_attacks(models, dataset, p.attack.eps, attacks, cache)


def _second_norm(
    target: ModelUnderAttack, dataset: ImageDataset, p: Params, cache: StepCache
) -> pd.DataFrame | None:
    """second_norm.csv: the same attacks in the other norm."""
    threat = p.attack.second()
    return (
        run_attack_suite(replace(target, norm=threat.norm), dataset, threat, p.attack_eval, cache)[
            0
        ]
        if threat
        else None
    )


def model_under_attack(
    network: Classifier, test: DatasetSplit, p: Params, fabric: Fabric
) -> ModelUnderAttack:
    """The model on the device, to be attacked on the test images."""
    network = network.to(fabric.device)
    fused = classifier.fuse_batchnorm(network)
    return ModelUnderAttack(
        fabric, network, fused, test, p.attack.norm, p.attack_eval.batch_size, p.seed
    )


def _sanity_checks(
    target: ModelUnderAttack, subset: np.ndarray, table: pd.DataFrame, p: Params
) -> dict[str, list[dict]]:
    """As a StepCache keeps them."""
    within = table[table["eps"] <= p.attack.eps]
    robust = (
        (within["label"] == within["prediction"]).groupby(within["path"], sort=False).all()
    )  # in the order of the split
    results = run_sanity_checks(target, subset, robust.to_numpy(), p.attack.eps, p.attack_eval)
    return {"results": [asdict(result) for result in results]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to attack")
    run_cli(main, **vars(parser.parse_args()))
