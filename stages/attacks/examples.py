"""The few images that are shown with their perturbation: selected by a rule, saved without loss."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from stages.attacks import suite
from stages.attacks.gradients import gradient_picture, input_gradient
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import quantize_8bit
from stages.core.dataset import ImageDataset
from stages.core.files import open_atomic
from stages.core.params import AttackEvalParams
from stages.core.predictions import CLEAN, EXAMPLE_COLUMNS, gradient_file, write_examples
from stages.models.inference import predict_logits


def select_examples(predictions: pd.DataFrame, count: int) -> list[str]:
    """Paths of correctly classified images whose confidence is the median of their class: not the most dramatic ones."""
    clean = predictions[
        (predictions["attack"] == CLEAN) & (predictions["label"] == predictions["prediction"])
    ]
    ranked = []
    for _, members in clean.groupby("label", sort=True):
        distance = (members["confidence"] - members["confidence"].median()).abs()
        ranked.append(
            members.assign(distance=distance).sort_values(["distance", "path"])["path"].tolist()
        )
    rounds = [
        paths[i] for i in range(count) for paths in ranked if i < len(paths)
    ]  # every class in turn
    return rounds[:count]


def save_examples(
    models: Mapping[str, ModelUnderAttack],
    dataset: ImageDataset,
    paths: list[str],
    eps: float,
    p: AttackEvalParams,
    folder: Path,
) -> None:
    """PGD at eps on these images: PNG files of 8 bits, and the model's predictions on exactly those, in ``examples.csv``.

    Without early stop: an attack that ends at the decision boundary would hide how confident the wrong prediction can be. The
    first of ``models`` is attacked; of all, the gradient at the originals is drawn.
    """
    target = next(iter(models.values()))
    folder.mkdir(parents=True, exist_ok=True)
    position_of = {
        path: position
        for position, path in enumerate(dataset.manifest["path"].iloc[target.split.rows])
    }
    attack = partial(
        suite.pgd, steps=p.pgd_steps, restarts=1, norm=target.norm, early_stop_margin=None
    )
    records: list[dict[str, object]] = []
    for _, x, y, noise in target.batches(
        np.array([position_of[path] for path in paths], dtype=int)
    ):
        x_adv = quantize_8bit(
            x, target.generate(attack, x, y, eps, noise, "pgd")
        )  # what an image file can hold
        before, after = (
            predict_logits(target.model, x).softmax(1),
            predict_logits(target.model, x_adv).softmax(1),
        )
        drawn = {name: input_gradient(model, x, y) for name, model in models.items()}
        for i in range(len(x)):
            number = len(records)
            files = {
                "original": f"{number}_original.png",
                "adversarial": f"{number}_adversarial.png",
            }
            for file, image in zip(files.values(), (x[i], x_adv[i]), strict=True):
                save_png(to_uint8(image), folder / file)
            for name, gradients in drawn.items():
                save_png(
                    gradient_picture(gradients[i]), folder / gradient_file(files["original"], name)
                )
            records.append(
                {
                    "path": paths[number],
                    "attack": "pgd",
                    "eps": eps,
                    "label": dataset.classes[y[i]],
                    "original_prediction": dataset.classes[before[i].argmax()],
                    "original_confidence": before[i].max().item(),
                    "adversarial_prediction": dataset.classes[after[i].argmax()],
                    "adversarial_confidence": after[i].max().item(),
                    **files,
                }
            )
    write_examples(pd.DataFrame(records, columns=list(EXAMPLE_COLUMNS)), folder)


def save_png(pixels: np.ndarray, file: Path) -> None:
    """Write (H, W, 3) or (H, W) uint8, without loss."""
    with open_atomic(file) as stream:
        Image.fromarray(pixels).save(stream, "PNG")


def perturbation_picture(delta: Tensor) -> np.ndarray:
    """A perturbation (3, H, W) on mid gray, its largest change black or white: (H, W, 3) uint8."""
    return to_uint8(0.5 + 0.5 * delta / delta.abs().max().clamp_min(1e-12))


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
