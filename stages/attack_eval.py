"""Attack one model with every attack and budget.  Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors, for adv also clean.safetensors.  Writes data/predictions/<model>/, whose
files predictions.py describes. Only here does a model see the test split. After a kill it goes on where it was.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from lightning_fabric import Fabric

from stages.attacks import autoattack, runner
from stages.attacks.corruptions import evaluate_corruptions
from stages.attacks.examples import save_examples, select_examples
from stages.attacks.minimum_eps import smallest_budgets
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.sanity_checks import run_sanity_checks
from stages.core.checkpoints import Checkpoint, StepCache, exit_with_parent, run_fingerprint
from stages.core.dataset import ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.errors import run
from stages.core.params import load_params
from stages.core.predictions import write_json, write_predictions, write_table, write_transfer
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_stage

STORE, MODELS, PREDICTIONS = Path("data/processed"), Path("data/models"), Path("data/predictions")


def main(name: str) -> pd.DataFrame:
    p = load_params("seed", "attack", "attack_eval", "runtime")
    exit_with_parent()
    store = load_dataset(STORE)
    test = DatasetSplit.of(store, "test")
    file, clean = MODELS / f"{name}.safetensors", MODELS / "clean.safetensors"
    fabric = make_fabric(p.runtime)
    target = made_ready(file, store, test, p, fabric)
    subset = target.sample(p.attack_eval.subset)

    work = run_fingerprint((p.seed, p.attack, p.attack_eval), [STORE / "images.npy", STORE / "manifest.csv", file, clean])
    with Checkpoint(f"attack_eval_{name}", work).held(fabric) as checkpoint:
        journal = StepCache(checkpoint, writes=fabric.is_global_zero)
        folder = PREDICTIONS / name
        table = runner.run_attack_suite(target, store, p.attack, p.attack_eval, subset, journal)
        write_predictions(table, folder)
        write_json("ensemble", autoattack.record(len(store.classes), len(subset), p.attack_eval, p.seed), folder)
        write_table("minimum_eps", smallest_budgets(target, store, subset, table, p.attack_eval, journal), folder)
        write_table("corruptions", evaluate_corruptions(target, store, subset, journal), folder)
        found = journal("diagnostics", lambda: {"findings": run_sanity_checks(target, subset, p.attack.eps, p.attack_eval)})
        write_json("diagnostics", found["findings"], folder)
        if name == "adv":  # the clean model is attacked before this one exists
            pair = {"adv": target, "clean": made_ready(clean, store, test, p, fabric)}
            steps = p.attack_eval.pgd_steps
            write_transfer(runner.transfer(pair, store, p.attack.eps, steps, subset, journal), folder)
        shown = select_examples(table, p.attack_eval.examples)
        save_examples(target, store, shown, p.attack.eps, p.attack_eval, folder / "examples")
    log_stage(f"attack_eval@{name}", p)
    return table


def made_ready(file: Path, store: ImageDataset, test: DatasetSplit, p: Any, fabric: Fabric) -> ModelUnderAttack:
    """The model of a file, to be attacked on the test split. Raises ModelError when it was made for something else."""
    model = classifier.load(file, store.classes, store.images.shape[1]).to(fabric.device)
    return ModelUnderAttack(
        fabric, model, classifier.fuse_batchnorm(model), test, p.attack.norm, p.attack_eval.batch_size, p.seed
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("clean", "adv"):
        sys.exit(f"error: expected the model to attack, clean or adv, got {' '.join(sys.argv[1:]) or 'nothing'}")
    run(lambda: main(sys.argv[1]))
