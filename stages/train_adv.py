"""Train the clean model on to resist the attacker.  Run: python -m stages.train_adv

Reads data/processed, data/models/clean.safetensors.  Writes data/models/adv.safetensors, plots/training_adv.csv.
"""

from functools import partial
from pathlib import Path

from stages.core.dataset import load_dataset
from stages.core.errors import run
from stages.core.params import load_params
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.tracking.stage_logging import log_epoch, log_stage
from stages.training import methods, overfitting
from stages.training.run import run_training
from stages.training.validation import Row, Validation

STORE, START = Path("data/processed"), Path("data/models/clean.safetensors")


def main() -> Row:
    p = load_params("seed", "attack.norm", "attack.eps", "train_adv", "runtime")
    store = load_dataset(STORE)
    validation = Validation(
        DatasetSplit.of(store, "val"),
        p.attack.norm,
        p.attack.eps,
        p.train_adv.val_steps,
        p.train_adv.val_images,
        score=lambda row: (row["val_robust_accuracy"], -row["val_robust_loss"]),
        measures=overfitting.measures,
        watch=partial(overfitting.watch, eps=p.attack.eps),
        alarm=partial(overfitting.alarm, eps=p.attack.eps),
    )
    return run_training(
        "train_adv",
        p,
        store,
        classifier.load(START, store.classes, store.images.shape[1]),
        validation,
        methods.of(p.train_adv, p.attack.norm, p.attack.eps),
        inputs=[STORE / "images.npy", STORE / "manifest.csv", START],
        model_file=Path("data/models/adv.safetensors"),
        history_file=Path("plots/training_adv.csv"),
        on_epoch=partial(log_epoch, "train_adv"),
        on_end=partial(log_stage, "train_adv", p),
    )


if __name__ == "__main__":
    run(main)
