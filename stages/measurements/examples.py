"""The few images that are shown with their perturbation: selected by a rule, saved without loss."""

from typing import Any

import numpy as np
import pandas as pd

from stages.attacks import gradient
from stages.attacks.gradient import pgd_step_size
from stages.attacks.verifier import check_within_budget, quantize_8bit
from stages.core.predictions import is_correct, select
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.gradients import input_gradient
from stages.measurements.pictures import gradient_picture, png_bytes, to_uint8
from stages.measurements.target import Batch, TargetModel
from stages.models.inference import predict_logits

TABLE = Table(
    "examples",
    {
        "path": (str, "image"),
        "attack": (str, "name of attacks.csv"),
        "eps": (float, "budget, pixel values in [0, 1]"),
        "label": (str, "class"),
        "original_prediction": (str, "predicted class without attack"),
        "original_confidence": (float, "its probability"),
        "adversarial_prediction": (str, "predicted class under attack"),
        "adversarial_confidence": (float, "its probability"),
        "original": (str, "PNG file of the image"),
        "adversarial": (str, "PNG file of the adversarial example"),
    },
)


def select_examples(predictions: pd.DataFrame, count: int) -> list[str]:
    """Paths of correctly classified images whose confidence is the median of their class.

    Not the most dramatic ones; every class in turn.
    """
    clean = select(predictions)
    clean = clean[is_correct(clean)]
    ranked = []
    for _, members in clean.groupby("label", sort=True):
        distance = (members["confidence"] - members["confidence"].median()).abs()
        order = members.assign(distance=distance).sort_values(["distance", "path"])
        ranked.append(order["path"].tolist())
    rounds = [paths[i] for i in range(count) for paths in ranked if i < len(paths)]
    return rounds[:count]


def attack_examples(target: TargetModel, batch: Batch, context: Context) -> dict[str, Any]:
    """PGD at the main ε, rounded to 8 bits as in a file, and the model's predictions on that.

    Without early stop: an attack that ends at the decision boundary would hide how confident the
    wrong prediction can be.
    """
    budget, steps = context.attack.budget, context.p.pgd_steps
    with target.fabric.autocast():
        x_adv = gradient.pgd(
            target.fused_model,
            batch.x,
            batch.y,
            budget,
            batch.noise("uniform", 0),
            alpha=pgd_step_size(budget.eps, steps),
            steps=steps,
        )
    check_within_budget(batch.x, x_adv, budget, "pgd")
    x_adv = quantize_8bit(batch.x, x_adv)
    result = {"x": batch.x, "x_adv": x_adv}
    result["before"] = predict_logits(target.model, batch.x).softmax(1)
    result["after"] = predict_logits(target.model, x_adv).softmax(1)
    for name, model in context.models.items():
        result[f"gradient_{name}"] = input_gradient(model, batch.x, batch.y)
    return result


def run(context: Context) -> dict[str, Any]:
    """examples.csv and PNG files in examples/, also of each model's gradient at the originals."""
    target, classes = context.target, context.dataset.classes
    paths = select_examples(context.predictions, context.p.examples)
    order = context.images(target.everything, "path")["path"].tolist()
    positions = np.array([order.index(path) for path in paths], dtype=int)
    result = context.steps.run("examples", target, positions, attack_examples, context)
    files: dict[str, Any] = {}
    rows = []
    for i, path in enumerate(paths):
        names = {kind: f"examples/{i}_{kind}.png" for kind in ("original", "adversarial")}
        files[names["original"]] = png_bytes(to_uint8(result["x"][i]))
        files[names["adversarial"]] = png_bytes(to_uint8(result["x_adv"][i]))
        for name in context.models:
            gradients = result[f"gradient_{name}"]
            files[f"examples/{i}_gradient_{name}.png"] = png_bytes(gradient_picture(gradients[i]))
        before, after = result["before"][i], result["after"][i]
        label = classes[int(target.labels[positions[i]])]
        rows.append(
            {
                "path": path,
                "attack": "pgd",
                "eps": context.attack.eps,
                "label": label,
                "original_prediction": classes[int(before.argmax())],
                "original_confidence": before.max().item(),
                "adversarial_prediction": classes[int(after.argmax())],
                "adversarial_confidence": after.max().item(),
                **names,
            }
        )
    return files | {TABLE.name: pd.DataFrame(rows, columns=list(TABLE.columns))}


MEASUREMENT = Measurement(run, (TABLE,))
