"""Adversarial fine-tuning of the clean model.

Run: python -m stages.train_adv

Reads data/processed, data/models/clean.safetensors.
Writes data/models/adv.safetensors, plots/training_adv.csv.
"""

from functools import partial

from stages.core.checkpoints import Checkpoint, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST, load_dataset
from stages.core.devices import make_fabric
from stages.core.params import PerturbationBudget, StageParams, TrainAdvParams
from stages.core.params_file import load_stage_params
from stages.core.paths import PROCESSED, history_path, weights_path
from stages.core.processes import run_cli
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training.epoch import Training
from stages.training.loop import fit, write_history
from stages.training.methods import make_training_method
from stages.training.validation import RobustValidation


class Params(StageParams):
    """What this stage reads of params.yaml."""

    attack: PerturbationBudget
    train_adv: TrainAdvParams


def main() -> None:
    """Run the stage."""
    p = load_stage_params(Params)
    q, dataset = p.train_adv, load_dataset(PROCESSED)
    model = classifier.load(weights_path("clean"), dataset.classes, dataset.image_size)
    images = DatasetSplit.from_dataset(dataset, "train")
    method = make_training_method(q, p.attack.budget)
    training = Training(model, images, method, q, p.seed)
    validation = RobustValidation(
        DatasetSplit.from_dataset(dataset, "val"), p.attack.budget, q.val_steps, q.val_images
    )
    fabric = make_fabric(p.runtime)
    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST, weights_path("clean")]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint("train_adv", fingerprint).lock(fabric) as checkpoint:
        progress = fit(fabric, training, validation, checkpoint, partial(log_epoch, "train_adv"))
        if fabric.is_global_zero:
            classifier.save(weights_path("adv"), model)
            write_history(history_path("adv"), progress)
            log_stage("train_adv", p)


if __name__ == "__main__":
    run_cli(main)
