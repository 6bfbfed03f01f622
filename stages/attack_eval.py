"""Attack one model with every attack and budget.  Run: python -m stages.attack_eval <clean|adv>

Reads data/processed, data/models/<model>.safetensors, for adv also clean.safetensors.  Writes data/predictions/<model>/, whose
files predictions.py describes. Only here does a model see the test split. After a kill it goes on where it was.
"""

import dataclasses
import itertools
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from stages.core import attacks, ensemble, models, tracking
from stages.core.attacks import Noise
from stages.core.batches import Split
from stages.core.checkpoints import Checkpoint, Journal, die_with_parent, work_key
from stages.core.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from stages.core.devices import make_fabric
from stages.core.ensemble import Target
from stages.core.errors import run
from stages.core.minimum_eps import bisect, bracket, largest
from stages.core.params import AttackEval, load_params
from stages.core.predictions import CLEAN, EXAMPLE_COLUMNS, write_examples, write_predictions, write_table, write_transfer
from stages.core.probes import probe
from stages.core.store import Store, open_store

STORE, MODELS, PREDICTIONS = Path("data/processed"), Path("data/models"), Path("data/predictions")
DIAGNOSED = 64


def main(name: str) -> pd.DataFrame:
    p = load_params("seed", "attack", "attack_eval", "runtime")
    die_with_parent()
    store = open_store(STORE)
    test = Split.of(store, "test")
    file = MODELS / f"{name}.safetensors"
    fabric = make_fabric(p.runtime)
    target = made_ready(file, store, test, p, fabric)

    subset = np.flatnonzero(np.isin(test.rows, test.stratified(p.attack_eval.subset, p.seed).rows))

    inputs = [STORE / "images.npy", STORE / "manifest.csv", file, MODELS / "clean.safetensors"]
    work = work_key((p.seed, p.attack, p.attack_eval), inputs)
    with Checkpoint(f"attack_eval_{name}", work).held(fabric) as checkpoint:
        journal = Journal(checkpoint, writes=fabric.is_global_zero)
        table = ensemble.attack_split(target, store, p.attack, p.attack_eval, subset, journal)
        smallest = smallest_budgets(target, store, subset, table, p.attack_eval, journal)
        corrupted = corrupted_answers(target, store, subset, journal)
        findings = journal("diagnostics", lambda: {"findings": diagnose(target, subset, p)})["findings"]
        if name == "adv":  # the clean model is attacked before this one exists
            other = made_ready(MODELS / "clean.safetensors", store, test, p, fabric)
            moved = {
                to: ensemble.transfer(source, aim, store, p.attack.eps, p.attack_eval.pgd_steps, subset).assign(target=to)
                for to, source, aim in (("clean", target, other), ("adv", other, target))
            }

        folder = PREDICTIONS / name
        write_predictions(table, folder)
        write_table("minimum_eps", smallest, folder)
        write_table("corruptions", corrupted, folder)
        if name == "adv":
            write_transfer(pd.concat(moved.values(), ignore_index=True), folder)
        (folder / "diagnostics.json").write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8", newline="\n")
        write_example_images(target, store, typical_cases(table, p.attack_eval.examples), p, folder / "examples")
    tracking.log_stage(f"attack_eval@{name}", p)
    return table


def made_ready(file: Path, store: Store, test: Split, p: Any, fabric: Fabric) -> Target:
    """The model of a file, to be attacked on the test split. Raises ModelError when it was made for something else."""
    model = models.load(file, store.classes, store.images.shape[1]).to(fabric.device)
    return Target(fabric, model, models.folded(model), test, p.attack.norm, p.attack_eval.batch_size, p.seed)


def smallest_budgets(
    target: Target, store: Store, subset: np.ndarray, table: pd.DataFrame, p: AttackEval, journal: Journal
) -> pd.DataFrame:
    """minimum_eps.csv: starts from what the table says of an image already."""
    known = {path: rows for path, rows in table.groupby("path")}
    parts = []
    for part, x, y, noise in target.batches(subset):
        images = store.manifest.iloc[target.split.rows[part]][["path", "label"]].reset_index(drop=True)
        low, high = torch.tensor([bracket(known[path], target.norm) for path in images["path"]]).to(x).unbind(1)
        limit = largest(target.norm, x)

        def find(x: Tensor = x, y: Tensor = y, noise: Noise = noise, low: Tensor = low, high: Tensor = high) -> dict[str, Any]:
            with torch.autocast(x.device.type, enabled=False):  # it ends at the boundary, where bfloat16 sees nothing
                how = {"rounds": p.min_eps_rounds, "steps": p.curve_steps, "norm": target.norm}
                found = bisect(target.twin, x, y, noise, low, high, score=partial(ensemble.score, target.model), **how)
            return {"eps": found.cpu()}

        eps = journal(f"minimum eps {part[0]}", find)["eps"].numpy()
        found = np.isfinite(eps)
        parts.append(images.assign(eps=np.where(found, eps, limit), found=found.astype(int)))
    return pd.concat(parts, ignore_index=True)


def corrupted_answers(target: Target, store: Store, subset: np.ndarray, journal: Journal) -> pd.DataFrame:
    """corruptions.csv."""
    parts = []
    for name, severity in itertools.product(CORRUPTIONS, SEVERITIES):

        def answer(name: str = name, severity: int = severity) -> dict[str, Any]:
            pictures = (corrupt(name, severity, x, noise) for _, x, _, noise in target.batches(subset))
            return {"logits": torch.cat([ensemble.score(target.model, x).cpu() for x in pictures])}

        probability = journal(f"{name} {severity}", answer)["logits"].softmax(1).numpy()
        images = store.manifest.iloc[target.split.rows[subset]][["path", "label"]].reset_index(drop=True)
        answers = np.array(store.classes)[probability.argmax(1)]
        parts.append(
            images.assign(corruption=name, severity=severity, prediction=answers, confidence=probability.max(1).astype(float))
        )
    return pd.concat(parts, ignore_index=True)


def diagnose(target: Target, subset: np.ndarray, p: Any) -> list[dict[str, Any]]:
    """The diagnostics that need the model, on at most DIAGNOSED images of the subset."""
    part = target.at(subset).split.stratified(DIAGNOSED, p.seed)
    positions = np.flatnonzero(np.isin(target.split.rows, part.rows))
    return [asdict(finding) for finding in probe(target, positions, p.attack.eps, p.attack_eval)]


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
