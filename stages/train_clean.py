"""Train the classifier without an attacker.  Run: python -m stages.train_clean

Reads data/processed.  Writes data/models/clean.safetensors, plots/training_clean.csv.
"""

from pathlib import Path

from stages.core import models
from stages.core.batches import Split
from stages.core.errors import run
from stages.core.params import load_params
from stages.core.store import open_store
from stages.core.training import Method
from stages.core.training_stage import carry_out
from stages.core.validation import Row, Validation

STORE = Path("data/processed")


def main() -> Row:
    p = load_params("seed", "model", "train_clean", "runtime")
    store = open_store(STORE)
    size = store.images.shape[1]
    validation = Validation(
        Split.of(store, "val"),
        "linf",
        p.train_clean.val_eps,  # a budget of its own: a change of attack.eps must not retrain this model
        p.train_clean.val_steps,
        p.train_clean.val_images,
        score=lambda row: (-row["val_loss"],),  # accuracy on few photographs is too coarse to tell epochs apart
    )
    return carry_out(
        "train_clean",
        p,
        store,
        models.build(p.model.arch, store.classes, size, p.model.weights, p.model.weights_sha256, p.seed),
        validation,
        Method(),
        inputs=[STORE / "images.npy", STORE / "manifest.csv"],
        model_file=Path("data/models/clean.safetensors"),
        history_file=Path("plots/training_clean.csv"),
    )


if __name__ == "__main__":
    run(main)
