"""Evaluate one model under all attacks and eps values.

Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors, for adv also clean.safetensors.  Writes data/predictions/<model>/, whose
files predictions.py describes. Only here does a model see the test split. Resumes after an interruption.
"""

import argparse
from dataclasses import asdict

import numpy as np
import pandas as pd
from lightning_fabric import Fabric

from stages.attacks.corruptions import evaluate_corruptions
from stages.attacks.examples import save_examples, select_examples
from stages.attacks.minimum_eps import find_minimum_eps
from stages.attacks.runner import ModelUnderAttack, run_attack_suite, run_transfer_attacks
from stages.attacks.sanity_checks import run_sanity_checks
from stages.core.checkpoints import Checkpoint, StepCache, exit_with_parent, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST, ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.errors import run_cli
from stages.core.files import write_json
from stages.core.params import AttackEvalParams, StageParams, ThreatModel
from stages.core.params_file import load_stage_params
from stages.core.paths import MODELS, PREDICTIONS, PROCESSED, weights_path
from stages.core.predictions import write_predictions, write_table, write_transfer
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_stage


class Params(StageParams):
    """What this stage reads of params.yaml."""

    attack: ThreatModel
    attack_eval: AttackEvalParams


def main(model: str) -> pd.DataFrame:
    """Run the stage; returns predictions.csv."""
    p = load_stage_params(Params)
    exit_with_parent()
    dataset, fabric, folder = load_dataset(PROCESSED), make_fabric(p.runtime), PREDICTIONS / model
    target = load_model_under_attack(model, dataset, p, fabric)
    everything, subset = np.arange(len(target.split)), target.stratified_positions(p.attack_eval.subset)

    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST, weights_path(model), weights_path("clean")]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint(f"attack_eval_{model}", fingerprint).lock(fabric) as checkpoint:
        cache = StepCache(checkpoint, writes=fabric.is_global_zero)
        table, ensemble = run_attack_suite(target, dataset, p.attack, p.attack_eval, cache)
        write_predictions(table, folder)
        write_json(folder / "model.json", classifier.describe(weights_path(model)))
        write_json(folder / "ensemble.json", ensemble)
        write_table("minimum_eps", find_minimum_eps(target, dataset, subset, table, p.attack_eval, cache), folder)
        write_table("corruptions", evaluate_corruptions(target, dataset, everything, cache), folder)
        checks = cache.get_or_compute("diagnostics", lambda: _sanity_checks(target, subset, table, p))
        write_json(folder / "diagnostics.json", checks["results"])
        if model == "adv":  # the clean model is attacked before this one exists
            models = {"adv": target, "clean": load_model_under_attack("clean", dataset, p, fabric)}
            steps = p.attack_eval.curve_steps
            write_transfer(run_transfer_attacks(models, dataset, p.attack.eps, steps, cache), folder)
        examples = select_examples(table, p.attack_eval.examples)
        save_examples(target, dataset, examples, p.attack.eps, p.attack_eval, folder / "examples")
    log_stage(f"attack_eval@{model}", p)
    return table


def load_model_under_attack(model: str, dataset: ImageDataset, p: Params, fabric: Fabric) -> ModelUnderAttack:
    """One of MODELS, to be attacked on the test split. Raises ModelError when it was made for another dataset."""
    network = classifier.load(weights_path(model), dataset.classes, dataset.image_size).to(fabric.device)
    test = DatasetSplit.from_dataset(dataset, "test")
    fused = classifier.fuse_batchnorm(network)
    return ModelUnderAttack(fabric, network, fused, test, p.attack.norm, p.attack_eval.batch_size, p.seed)


def _sanity_checks(target: ModelUnderAttack, subset: np.ndarray, table: pd.DataFrame, p: Params) -> dict[str, list[dict]]:
    """As a StepCache keeps them."""
    robust = (table["label"] == table["prediction"]).groupby(table["path"], sort=False).all()  # in the order of the split
    results = run_sanity_checks(target, subset, robust.to_numpy(), p.attack.eps, p.attack_eval)
    return {"results": [asdict(result) for result in results]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to attack")
    run_cli(main, **vars(parser.parse_args()))
