"""Adversarial fine-tuning of the clean model.

Run: python -m stages.train_adv

Reads data/processed, data/models/clean.safetensors.  Writes data/models/adv.safetensors, plots/training_adv.csv.
"""

from stages.core.dataset import load_dataset
from stages.core.params import PerturbationBudget, StageParams, TrainAdvParams
from stages.core.params_file import load_stage_params
from stages.core.paths import PROCESSED, weights_path
from stages.core.processes import run_cli
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training.methods import make_training_method
from stages.training.overfitting import RobustValidation
from stages.training.run import run_training
from stages.training.validation import EpochMetrics


class Params(StageParams):
    """What this stage reads of params.yaml."""

    attack: PerturbationBudget
    train_adv: TrainAdvParams


def main() -> EpochMetrics:
    """Run the stage; returns the metrics of the selected epoch."""
    p = load_stage_params(Params)
    dataset = load_dataset(PROCESSED)
    initial = weights_path("clean")
    return run_training(
        "adv",
        classifier.load(initial, dataset.classes, dataset.image_size),
        DatasetSplit.from_dataset(dataset, "train"),
        RobustValidation(
            DatasetSplit.from_dataset(dataset, "val"),
            p.attack.norm,
            p.attack.eps,
            p.train_adv.val_steps,
            p.train_adv.val_images,
        ),
        make_training_method(p.train_adv, norm=p.attack.norm, eps=p.attack.eps),
        p,
        p.train_adv,
        initial_weights=[initial],
        log_epoch=log_epoch,
        log_stage=log_stage,
    )


if __name__ == "__main__":
    run_cli(main)
