"""Train the clean model on to resist the attacker.  Run: python -m stages.train_adv

Reads data/processed, data/models/clean.safetensors.  Writes data/models/adv.safetensors, plots/training_adv.csv.
"""

from functools import partial
from pathlib import Path

from stages.core import adversarial, models, overfitting
from stages.core.batches import Split
from stages.core.errors import run
from stages.core.params import load_params
from stages.core.store import open_store
from stages.core.training_stage import carry_out
from stages.core.validation import Row, Validation

STORE, START = Path("data/processed"), Path("data/models/clean.safetensors")


def main() -> Row:
    p = load_params("seed", "attack.norm", "attack.eps", "train_adv", "runtime")
    store = open_store(STORE)
    validation = Validation(
        Split.of(store, "val"),
        p.attack.norm,
        p.attack.eps,
        p.train_adv.val_steps,
        p.train_adv.val_images,
        score=lambda row: (row["val_robust_accuracy"], -row["val_robust_loss"]),
        measures=overfitting.measures,
        watch=partial(overfitting.watch, eps=p.attack.eps),
        alarm=partial(overfitting.alarm, eps=p.attack.eps),
    )
    return carry_out(
        "train_adv",
        p,
        store,
        models.load(START, store.classes, store.images.shape[1]),
        validation,
        adversarial.of(p.train_adv, p.attack.norm, p.attack.eps),
        inputs=[STORE / "images.npy", STORE / "manifest.csv", START],
        model_file=Path("data/models/adv.safetensors"),
        history_file=Path("plots/training_adv.csv"),
    )


if __name__ == "__main__":
    run(main)
