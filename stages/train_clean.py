"""Standard training of the classifier.

Run: python -m stages.train_clean

Reads data/processed.  Writes data/models/clean.safetensors, plots/training_clean.csv.
"""

from functools import partial

from stages.core.checkpoints import Checkpoint, run_fingerprint
from stages.core.dataset import IMAGES, MANIFEST, load_dataset
from stages.core.devices import make_fabric
from stages.core.params import ModelParams, StageParams, TrainCleanParams
from stages.core.params_file import load_stage_params
from stages.core.paths import PROCESSED, history_path, weights_path
from stages.core.processes import run_cli
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.weights import create_model
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training.epoch import StandardTraining, Training
from stages.training.loop import fit, write_history
from stages.training.validation import StandardValidation


class Params(StageParams):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train_clean: TrainCleanParams


def main() -> None:
    """Run the stage."""
    p = load_stage_params(Params)
    q, dataset = p.train_clean, load_dataset(PROCESSED)
    weights, sha256 = p.model.weights, p.model.weights_sha256
    model = create_model(p.model.arch, dataset.classes, dataset.image_size, weights, sha256, p.seed)
    images = DatasetSplit.from_dataset(dataset, "train")
    training = Training(model, images, StandardTraining(q), q, p.seed)
    validation = StandardValidation(
        DatasetSplit.from_dataset(dataset, "val"), q.val_budget, q.val_steps, q.val_images
    )
    fabric = make_fabric(p.runtime)
    inputs = [PROCESSED / IMAGES, PROCESSED / MANIFEST]
    fingerprint = run_fingerprint(p.model_dump(exclude={"runtime"}), inputs)
    with Checkpoint("train_clean", fingerprint).lock(fabric) as checkpoint:
        progress = fit(fabric, training, validation, checkpoint, partial(log_epoch, "train_clean"))
        if fabric.is_global_zero:
            classifier.save(weights_path("clean"), model)
            write_history(history_path("clean"), progress)
            log_stage("train_clean", p)


if __name__ == "__main__":
    run_cli(main)
