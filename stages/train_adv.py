"""Train the clean model on to resist the attacker.  Run: python -m stages.train_adv

Reads data/processed, data/models/clean.safetensors.  Writes data/models/adv.safetensors, plots/training_adv.csv.
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

STORE, START = Path("data/processed"), Path("data/models/clean.safetensors")
MODEL, HISTORY = Path("data/models/adv.safetensors"), Path("plots/training_adv.csv")


def main() -> dict[str, float]:
    p = load_params("seed", "attack.eps", "train_adv", "runtime")
    die_with_parent()
    store = open_store(STORE)
    model = models.load(START, store.classes, store.images.shape[1])
    fabric = make_fabric(p.runtime)
    eps = p.attack.eps
    validation = Validation(
        Split.of(store, "val"),
        partial(perturbations.pgd, alpha=eps / 4, steps=p.train_adv.val_steps, stop_lead=0),
        eps,
        p.train_adv.val_images,
        score=lambda row: (row["val_robust_accuracy"], -row["val_robust_loss"]),
    )
    work = work_key((p.seed, p.attack.eps, p.train_adv), [STORE / "images.npy", STORE / "manifest.csv", START])
    with Checkpoint("train_adv", work).held(fabric) as checkpoint:
        result = fit(
            fabric,
            model,
            Split.of(store, "train"),
            validation,
            p.train_adv,
            seed=p.seed,
            checkpoint=checkpoint,
            perturb=perturbations.for_training(p.train_adv),
            eps=eps,
            eps_ramp=p.train_adv.eps_ramp,
            clean_share=p.train_adv.clean_share,
            on_epoch=partial(tracking.log_epoch, "train_adv"),
        )
        if fabric.is_global_zero:
            model.load_state_dict(result.state)
            models.save(MODEL, model)
            write_history(HISTORY, result)
            tracking.log_stage("train_adv", p)
    return result.history[result.epoch - 1]


if __name__ == "__main__":
    run(main)
