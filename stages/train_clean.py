"""Standard training of the classifier.

Run: python -m stages.train_clean

Reads data/processed.  Writes data/models/clean.safetensors, plots/training_clean.csv.
"""

from stages.core.dataset import load_dataset
from stages.core.params import ModelParams, StageParams, TrainCleanParams
from stages.core.params_file import load_stage_params
from stages.core.paths import PROCESSED
from stages.core.processes import run_cli
from stages.models.batches import DatasetSplit
from stages.models.initialization import create_model
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training.loop import TrainingMethod
from stages.training.run import run_training
from stages.training.validation import EpochMetrics, Validation


class Params(StageParams):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train_clean: TrainCleanParams


def main() -> EpochMetrics:
    """Run the stage; returns the metrics of the selected epoch."""
    p = load_stage_params(Params)
    dataset = load_dataset(PROCESSED)
    weights, sha256 = p.model.weights, p.model.weights_sha256
    return run_training(
        "clean",
        create_model(p.model.arch, dataset.classes, dataset.image_size, weights, sha256, p.seed),
        DatasetSplit.from_dataset(dataset, "train"),
        # An eps of its own: a change of attack.eps must not retrain this model.
        Validation(
            DatasetSplit.from_dataset(dataset, "val"),
            "linf",
            p.train_clean.val_eps,
            p.train_clean.val_steps,
            p.train_clean.val_images,
        ),
        TrainingMethod(),
        p,
        p.train_clean,
        initial_weights=[],
        log_epoch=log_epoch,
        log_stage=log_stage,
    )


if __name__ == "__main__":
    run_cli(main)
