"""Train the classifier without an attacker.  Run: python -m stages.train_clean

Reads data/processed.  Writes data/models/clean.safetensors, plots/training_clean.csv.
"""

from functools import partial
from pathlib import Path

from stages.core import models, perturbations, tracking
from stages.core.batches import Split
from stages.core.checkpoints import Checkpoint, die_with_parent, work_key
from stages.core.devices import make_fabric
from stages.core.errors import run
from stages.core.params import load_params
from stages.core.store import open_store
from stages.core.training import Validation, fit, write_history

STORE, MODEL, HISTORY = Path("data/processed"), Path("data/models/clean.safetensors"), Path("plots/training_clean.csv")


def main() -> dict[str, float]:
    p = load_params("seed", "model", "train_clean", "runtime")
    die_with_parent()
    store = open_store(STORE)
    size = store.images.shape[1]
    model = models.build(p.model.arch, store.classes, size, p.model.weights, p.model.weights_sha256, p.seed)
    fabric = make_fabric(p.runtime)
    # The curve of adversarial accuracy has a budget of its own: a change of attack.eps must not retrain this model.
    eps = p.train_clean.val_eps
    validation = Validation(
        Split.of(store, "val"),
        partial(perturbations.pgd, alpha=eps / 4, steps=p.train_clean.val_steps, stop_lead=0),
        eps,
        p.train_clean.val_images,
        score=lambda row: (-row["val_loss"],),  # accuracy on few photographs is too coarse to tell epochs apart
    )
    work = work_key((p.seed, p.model, p.train_clean), [STORE / "images.npy", STORE / "manifest.csv"])
    with Checkpoint("train_clean", work).held(fabric) as checkpoint:
        result = fit(
            fabric,
            model,
            Split.of(store, "train"),
            validation,
            p.train_clean,
            seed=p.seed,
            checkpoint=checkpoint,
            on_epoch=partial(tracking.log_epoch, "train_clean"),
        )
        if fabric.is_global_zero:
            model.load_state_dict(result.state)
            models.save(MODEL, model)
            write_history(HISTORY, result)
            tracking.log_stage("train_clean", p)
    return result.history[result.epoch - 1]


if __name__ == "__main__":
    run(main)
