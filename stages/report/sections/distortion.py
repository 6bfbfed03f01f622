"""What a success costs: gradient steps, and how visible the adversarial examples are."""

from typing import Any

import numpy as np

from stages.core.paths import MODELS
from stages.core.predictions import attacks_at, is_correct, select
from stages.report.blocks import Block, Details, Table, Text, grouped_head, row
from stages.report.formatting import NOT_AVAILABLE
from stages.report.results import ModelResults, Results
from stages.report.section import Section


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Mean PSNR, in dB, and SSIM of each attack's adversarial examples.

    The higher, the less visible. PSNR is 10 log10(D / l2^2) of an image of D pixel values in
    [0, 1]. What isn't misclassified or not perturbed is none; an attack without adversarial
    examples is left out.
    """
    pixel_values, psnr, ssim = 3 * results.dataset.image_size**2, {}, {}
    for attack in attacks_at(model.rows, results.eps):
        rows = select(model.rows, attack, results.eps)
        rows = rows[~is_correct(rows) & (rows["l2"] > 0).to_numpy()]
        if len(rows):
            square = rows["l2"].to_numpy(float) ** 2
            psnr[attack] = float((10 * np.log10(pixel_values / square)).mean())
            ssim[attack] = float(rows["ssim"].mean())
    return {"mean_psnr": psnr, "mean_ssim": ssim}


def blocks(results: Results) -> list[Block]:
    """A table."""
    body = []
    for attack in results.metrics[MODELS[0]]["attacked_images"]:
        cells: list[Any] = [results.steps.get(attack, 0)]
        for model in results.models:
            values = results.metrics[model]
            if attack in values["mean_psnr"]:
                cells.append(f"{values['mean_psnr'][attack]:.1f} dB")
                cells.append(f"{values['mean_ssim'][attack]:.3f}")
            else:
                cells += [NOT_AVAILABLE] * 2
        body.append(row(results.attack_label(attack, steps=False), *cells))
    labels = [model.label for model in results.models.values()]
    title = (
        f"Gradient steps of one run of each attack at {results.budget} on an image (PGD: of each "
        "restart; the ensemble: of each loss); mean peak signal-to-noise ratio (PSNR) and "
        "structural similarity (SSIM) of its adversarial examples: the higher, the less visible. "
        "Source: metrics/evaluate.json."
    )
    columns = grouped_head(["attack", "gradient steps"], labels, ["PSNR", "SSIM"])
    return [
        Details("Steps, PSNR and SSIM per attack", [Table(title, columns, body)]),
        Text(
            "BIM and PGD stop at the first misclassification, and PGD keeps what it found at a "
            "smaller ε; FGSM takes the whole step. Transfer attacks cost the model that is "
            "attacked one query, the universal perturbation none: it was computed beforehand."
        ),
    ]


SECTION = Section("distortion", "What a success costs", blocks, metrics=metrics, level=3)
