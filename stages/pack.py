"""Make an evidence pack of a model: adversarial examples of 8 bits that anyone can score again.

Run: python -m stages.pack <clean|adv> [--images] [--out FOLDER]

Reads data/processed, data/models/<model>.safetensors, data/predictions/<model>, metrics/data.json.
Writes data/packs/<model>/, which stages.verify checks. Not a stage of the pipeline. attack_eval
keeps no adversarial examples, so the images that it reports as misclassified under attack are
attacked again: PGD taking all its steps, then what is left of them with the ensemble. Only examples
that the model misclassifies in 8 bits and in float32 get into the pack.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.attacks import gradient
from stages.attacks.attack import Attack, Noise, attack
from stages.attacks.gradient import margin_loss, pgd_step_size
from stages.attacks.registry import ensemble
from stages.attacks.verifier import check_within_budget, quantize_8bit
from stages.core.code import code_digest
from stages.core.dataset import ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.errors import InputError
from stages.core.files import read_json
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams, AttackParams, DataParams, StageParams
from stages.core.params_file import load_stage_params
from stages.core.paths import METRICS, MODELS, PREDICTIONS, PROCESSED, weights_path
from stages.core.predictions import CLEAN, is_correct, select, validate, within, worst_case
from stages.core.processes import run_cli
from stages.core.tables import read_table
from stages.evidence.pack import (
    COLUMNS,
    PERTURBATIONS,
    PIXELS,
    EvidencePack,
    Manifest,
    pixels_sha256,
    sha256,
    smallest_type,
    write_pack,
)
from stages.measurements.steps import Steps
from stages.measurements.suite import predict_clean
from stages.measurements.target import Batch, TargetModel
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.inference import predict_logits

PACKS = Path("data/packs")
MIN_MARGIN = 1e-3  # of the margin loss: on another machine, logits round otherwise


class Params(StageParams):
    """What this command reads of params.yaml."""

    data: DataParams
    attack: AttackParams
    attack_eval: AttackEvalParams


@attack("PGD-{steps}", "iterative", steps="pgd_steps")
def pgd(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """PGD without early stop: just beyond the decision boundary, rounding would undo it."""
    alpha = pgd_step_size(budget.eps, p.pgd_steps)
    return gradient.pgd(model, x, y, budget, noise("uniform", 0), alpha=alpha, steps=p.pgd_steps)


def main(model: str, images: bool = False, out: Path | None = None) -> EvidencePack | None:
    """Make the pack; of several processes the first one returns it.

    Args:
        model: one of MODELS.
        images: whether the images get into it; those of a synthetic dataset always do.
        out: the folder; None: data/packs/<model>.

    Raises:
        InputError: when the predictions are of another model or of other images.
    """
    p, dataset = load_stage_params(Params), load_dataset(PROCESSED)
    weights, folder = weights_path(model), out or PACKS / model
    network = classifier.load(weights, dataset.classes, dataset.image_size)
    test, fabric = DatasetSplit.from_dataset(dataset, "test"), make_fabric(p.runtime)
    manifest = dataset.manifest.iloc[test.rows].reset_index(drop=True)
    fell = misclassified_under_attack(model, sha256(weights), manifest["path"], p.attack.eps)

    target = TargetModel.of(network, fabric, test, p.attack_eval.batch_size, p.seed)
    attacks = (pgd, *ensemble(p.attack_eval, len(dataset.classes)))
    rows, levels = adversarial_examples(
        dataset, target, fell, attacks, p.attack.budget, p.attack_eval, Steps(fabric)
    )
    pixels = np.asarray(dataset.images[test.rows])
    rows = rows.assign(
        file_sha256=manifest["sha256"],
        pixels_sha256=[pixels_sha256(image) for image in pixels],
        label=manifest["label"],
    )[list(COLUMNS)]
    correct = is_correct(rows)
    perturbed = (rows["attack"] != CLEAN).to_numpy()
    claims = Manifest(
        version=1,
        model=model,  # type: ignore[arg-type]  # pydantic checks it
        model_sha256=sha256(weights),
        code_sha256=code_digest(),
        classes=dataset.classes,
        image_size=dataset.image_size,
        crop=p.data.crop,
        norm=p.attack.norm,
        eps=p.attack.eps,
        images=len(rows),
        clean_correct=int(correct.sum()),
        robust_correct=int((correct & ~perturbed).sum()),
        params=p.model_dump(mode="json", include={"seed", "attack", "attack_eval"}),
    )
    if not fabric.is_global_zero:
        return None
    synthetic = read_json(METRICS / "data.json", "preprocess", dict[str, Any]).get("synthetic")
    tensors = {PERTURBATIONS: smallest_type(levels)}
    tensors |= {PIXELS: pixels} if images or synthetic else {}
    pack = write_pack(folder, claims, rows, tensors)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(
        f"{folder}: {perturbed.sum()} adversarial examples of the {fell.sum()} images that "
        f"attack_eval reports; {'with' if pack.has_images else 'without'} images; "
        f"{size / 1e6:.1f} MB; SHA-256 {pack.sha256}"
    )
    return pack


def misclassified_under_attack(model: str, digest: str, paths: pd.Series, eps: float) -> np.ndarray:
    """(N,) bool: correct without attack, misclassified under one, as attack_eval reports it.

    Raises:
        InputError: when its tables are of another model or of other images.
    """
    folder = PREDICTIONS / model
    attacked = read_json(folder / "model.json", "attack_eval", dict[str, Any]).get("sha256")
    if attacked != digest:
        raise InputError(
            f"{folder}: expected predictions of the model with SHA-256 {digest}, got {attacked}: "
            "run `dvc repro`"
        )
    rows = validate(read_table(folder, "predictions"), str(folder))
    clean, worst = (
        table.set_index("path") for table in (select(rows), worst_case(within(rows, eps)))
    )
    if set(clean.index) != set(paths):
        raise InputError(f"{folder}: expected predictions of the test images, got others")
    fell = pd.Series(is_correct(clean), clean.index) & ~pd.Series(is_correct(worst), worst.index)
    return fell.loc[paths].to_numpy()


def adversarial_examples(
    dataset: ImageDataset,
    target: TargetModel,
    chosen: np.ndarray,
    attacks: Iterable[Attack],
    budget: Budget,
    p: AttackEvalParams,
    steps: Steps,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Attack the chosen images (N,) bool until each has an example of 8 bits, or none is left.

    Returns:
        prediction, attack and adversarial_prediction of all N images; the perturbations
        (M, 3, H, W), whole numbers in steps of 1/255, of those with an attack.
    """
    names = np.array(dataset.classes)
    logits = steps.run("clean", target, target.everything, predict_clean)["logits"]
    prediction = logits.argmax(1).numpy()
    attack_names = np.full(len(chosen), CLEAN, dtype=object)
    adversarial, found = prediction.copy(), {}
    remaining = np.flatnonzero(chosen & (prediction == target.labels.numpy()))
    for each in attacks:
        if not len(remaining):
            break
        result = steps.run(each.name, target, remaining, attack_8bit, each, budget, p)
        predicted = result["logits"].argmax(1).numpy()
        margin = margin_loss(result["logits"], target.labels[remaining])
        success = (margin > MIN_MARGIN).numpy()
        for i in np.flatnonzero(success):
            found[remaining[i]] = result["levels"][i].numpy()
        attack_names[remaining[success]] = each.name
        adversarial[remaining[success]] = predicted[success]
        remaining = remaining[~success]
    rows = {
        "prediction": names[prediction],
        "attack": attack_names,
        "adversarial_prediction": names[adversarial],
    }
    side = dataset.image_size
    levels = [found[i] for i in sorted(found)]
    return pd.DataFrame(rows), np.array(levels, np.int16).reshape(-1, 3, side, side)


def attack_8bit(
    target: TargetModel, batch: Batch, chosen: Attack, budget: Budget, p: AttackEvalParams
) -> dict[str, Tensor]:
    """Perturbations ``levels`` in steps of 1/255, and the logits of the images with them."""
    with target.fabric.autocast():
        x_adv = chosen.run(target.fused_model, batch.x, batch.y, budget, batch.noise, p)
    check_within_budget(batch.x, x_adv, budget, chosen.name)
    x_adv = quantize_8bit(batch.x, x_adv)
    levels = ((x_adv - batch.x) * 255).round().to(torch.int16)
    return {"levels": levels, "logits": predict_logits(target.model, x_adv)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to make a pack of")
    parser.add_argument("--images", action="store_true", help="put the images into the pack, too")
    parser.add_argument("--out", type=Path, help="folder; otherwise data/packs/<model>")
    run_cli(main, **vars(parser.parse_args()))
