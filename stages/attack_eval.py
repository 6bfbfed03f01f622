"""Attack one model with every attack and budget.  Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors.  Writes data/predictions/<model>/: predictions.csv, one row per test
image, attack and budget, and examples/, a few images before and after. Only here does a model see the test split.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from stages.core import attacks, ensemble, models, tracking
from stages.core.batches import Split
from stages.core.checkpoints import Checkpoint, Journal, die_with_parent, work_key
from stages.core.devices import make_fabric
from stages.core.ensemble import Target
from stages.core.errors import run
from stages.core.params import load_params
from stages.core.predictions import CLEAN, EXAMPLE_COLUMNS, write_examples, write_predictions
from stages.core.store import Store, open_store

STORE, MODELS, PREDICTIONS = Path("data/processed"), Path("data/models"), Path("data/predictions")


def main(name: str) -> pd.DataFrame:
    p = load_params("seed", "attack", "attack_eval", "runtime")
    die_with_parent()
    store = open_store(STORE)
    test = Split.of(store, "test")
    file = MODELS / f"{name}.safetensors"
    model = models.load(file, store.classes, store.images.shape[1])
    fabric = make_fabric(p.runtime)
    model = model.to(fabric.device)
    twin = models.folded(model)

    target = Target(fabric, model, twin, test, p.attack.norm, p.attack_eval.batch_size, p.seed)
    subset = np.flatnonzero(np.isin(test.rows, test.stratified(p.attack_eval.subset, p.seed).rows))

    work = work_key((p.seed, p.attack, p.attack_eval), [STORE / "images.npy", STORE / "manifest.csv", file])
    with Checkpoint(f"attack_eval_{name}", work).held(fabric) as checkpoint:
        journal = Journal(checkpoint, writes=fabric.is_global_zero)
        table = ensemble.attack_split(target, store, p.attack, p.attack_eval, subset, journal)
        write_predictions(table, PREDICTIONS / name)
        cases = typical_cases(table, p.attack_eval.examples)
        write_example_images(target, store, cases, p, PREDICTIONS / name / "examples")
    tracking.log_stage(f"attack_eval@{name}", p)
    return table


def typical_cases(table: pd.DataFrame, count: int) -> list[str]:
    """Paths of images that the model gets right with the median confidence of their class: not the most dramatic ones."""
    clean = table[(table["attack"] == CLEAN) & (table["label"] == table["prediction"])]
    ranked = []
    for _, members in clean.groupby("label", sort=True):
        distance = (members["confidence"] - members["confidence"].median()).abs()
        ranked.append(members.assign(distance=distance).sort_values(["distance", "path"])["path"].tolist())
    rounds = [paths[i] for i in range(count) for paths in ranked if i < len(paths)]  # every class in turn
    return rounds[:count]


def write_example_images(target: Target, store: Store, paths: list[str], p: object, folder: Path) -> None:
    """PGD at attack.eps on these images: PNGs of 8 bits, and what the model says of exactly those PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.array([store.manifest.index[store.manifest["path"] == path][0] for path in paths], dtype=int)
    records = []
    if len(rows):
        shown = dataclasses.replace(target, split=Split(store.images, store.labels, rows), batch_size=len(rows))
        ((_, x, y, noise),) = shown.batches(np.arange(len(rows)))
        attack, _ = attacks.attacks_at_budget(p.attack_eval, p.attack.norm)["pgd"]
        x_adv = attacks.eight_bits(x, shown.craft(attack, x, y, p.attack.eps, noise, "pgd"))  # what a picture file can hold
        before, after = ensemble.score(target.model, x).softmax(1), ensemble.score(target.model, x_adv).softmax(1)
        for i, path in enumerate(paths):
            files = {"original": f"{i}_original.png", "adversarial": f"{i}_adversarial.png"}
            for file, image in zip(files.values(), (x[i], x_adv[i]), strict=True):
                Image.fromarray(to_pixels(image)).save(folder / file)
            records.append(
                {
                    "path": path,
                    "attack": "pgd",
                    "eps": p.attack.eps,
                    "label": store.classes[y[i]],
                    "original_prediction": store.classes[before[i].argmax()],
                    "original_confidence": before[i].max().item(),
                    "adversarial_prediction": store.classes[after[i].argmax()],
                    "adversarial_confidence": after[i].max().item(),
                    **files,
                }
            )
    write_examples(pd.DataFrame(records, columns=list(EXAMPLE_COLUMNS)), folder)


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("clean", "adv"):
        sys.exit(f"error: expected the model to attack, clean or adv, got {' '.join(sys.argv[1:]) or 'nothing'}")
    run(lambda: main(sys.argv[1]))
