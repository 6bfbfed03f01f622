"""Evaluate one model under all attacks, and measure what else is reported of its robustness.

Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors, for adv also clean.safetensors. Writes
data/predictions/<model>/, whose datapackage.json describes the tables. Only here does a model see
the test split. Resumes after an interruption.
"""

import argparse
from pathlib import Path

import pandas as pd

from stages.core.checkpoints import Checkpoint, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST, load_dataset
from stages.core.devices import describe, make_fabric
from stages.core.params import AttackEvalParams, AttackParams, StageParams
from stages.core.params_file import load_stage_params
from stages.core.paths import MODELS, PREDICTIONS, PROCESSED, weights_path
from stages.core.processes import run_cli
from stages.measurements.context import Context, write_results
from stages.measurements.registry import MEASUREMENTS
from stages.measurements.steps import Steps
from stages.measurements.target import TargetModel
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_stage

SURROGATE = "surrogate"


class Params(StageParams):
    """What this stage reads of params.yaml."""

    attack: AttackParams
    attack_eval: AttackEvalParams


def main(model: str) -> pd.DataFrame:
    """Run the stage; returns predictions.csv."""
    p, dataset = load_stage_params(Params), load_dataset(PROCESSED)
    # The clean model is attacked before the other one exists.
    files = {name: weights_path(name) for name in (["adv", "clean"] if model == "adv" else [model])}
    if p.attack_eval.surrogate != "none":
        files[SURROGATE] = Path(p.attack_eval.surrogate)
    # Before any further process is started: what is wrong with the files is said once.
    networks = {
        name: classifier.load(file, dataset.classes, dataset.image_size)
        for name, file in files.items()
    }
    test, fabric = DatasetSplit.from_dataset(dataset, "test"), make_fabric(p.runtime)
    models = {
        name: TargetModel.of(network, fabric, test, p.attack_eval.batch_size, p.seed)
        for name, network in networks.items()
    }
    surrogate = models.pop(SURROGATE, None)

    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST, *files.values()]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint(f"attack_eval_{model}", fingerprint).lock(fabric) as checkpoint:
        steps = Steps(fabric, checkpoint)
        context = Context(p.attack, p.attack_eval, dataset, models, surrogate, steps)
        chosen = [measurement for measurement in MEASUREMENTS if measurement.applies(context)]
        steps.expect(sum(measurement.steps(context) for measurement in chosen))
        for measurement in chosen:
            context.results |= measurement.run(context)
        steps.close()
        context.results["model"] = classifier.describe(weights_path(model)) | describe(p.runtime)
        if fabric.is_global_zero:
            write_results(PREDICTIONS / model, context.results, chosen)
            log_stage(f"attack_eval@{model}", p)
    return context.predictions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to attack")
    run_cli(main, **vars(parser.parse_args()))
