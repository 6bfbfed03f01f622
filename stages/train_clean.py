"""Train the classifier without an attacker.  Run: python -m stages.train_clean

Reads data/processed.  Writes data/models/clean.safetensors, plots/training_clean.csv.
"""

from functools import partial
from pathlib import Path

from stages.core.dataset import load_dataset
from stages.core.errors import run
from stages.core.params import load_params
from stages.models import initialization
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training.loop import TrainingMethod
from stages.training.run import run_training
from stages.training.validation import Row, Validation

STORE = Path("data/processed")


def main() -> Row:
    p = load_params("seed", "model", "train_clean", "runtime")
    store = load_dataset(STORE)
    size = store.images.shape[1]
    validation = Validation(
        DatasetSplit.of(store, "val"),
        "linf",
        p.train_clean.val_eps,  # a budget of its own: a change of attack.eps must not retrain this model
        p.train_clean.val_steps,
        p.train_clean.val_images,
        score=lambda row: (-row["val_loss"],),  # accuracy on few photographs is too coarse to tell epochs apart
    )
    return run_training(
        "train_clean",
        p,
        store,
        initialization.create_model(p.model.arch, store.classes, size, p.model.weights, p.model.weights_sha256, p.seed),
        validation,
        TrainingMethod(),
        inputs=[STORE / "images.npy", STORE / "manifest.csv"],
        model_file=Path("data/models/clean.safetensors"),
        history_file=Path("plots/training_clean.csv"),
        on_epoch=partial(log_epoch, "train_clean"),
        on_end=partial(log_stage, "train_clean", p),
    )


if __name__ == "__main__":
    run(main)
