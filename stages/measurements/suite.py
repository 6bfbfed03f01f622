"""Every attack and ε on every test image: the table that most of the report comes from."""

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.attacks.apgd import apgd
from stages.attacks.attack import Attack
from stages.attacks.autoattack import MAX_TARGETS
from stages.attacks.gradient import margin_loss
from stages.attacks.registry import SUITE, ensemble, ensemble_name
from stages.attacks.transfer import pgd_on
from stages.attacks.universal import add_perturbation
from stages.attacks.verifier import check_within_budget
from stages.attacks.white_box import pgd
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.core.predictions import (
    CLEAN,
    PREDICTIONS,
    is_correct,
    probability_columns,
    validate,
    within,
    worst_case,
)
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.similarity import structural_similarity
from stages.measurements.target import Batch, TargetModel
from stages.models.architectures import ModelError
from stages.models.inference import predict_logits

ATTACKS = Table(
    "attacks",
    {
        "attack": (str, "name, as in the other tables"),
        "label": (str, "name in texts; {steps} stands for its gradient steps"),
        "kind": (str, "noise, single-step, iterative, ensemble, transfer or universal"),
    },
)


def predict_clean(target: TargetModel, batch: Batch) -> dict[str, Tensor]:
    """The model on the clean images. Raises ModelError when it answers anything but numbers."""
    logits = predict_logits(target.model, batch.x)
    if len(images := (~logits.isfinite()).any(1).nonzero()):
        raise ModelError(
            f"expected finite logits of the model, got {logits[images[0, 0]].tolist()}"
        )
    zeros = torch.zeros(len(logits))
    return {"logits": logits, "linf": zeros, "l2": zeros, "ssim": torch.ones(len(logits))}


def attack_batch(
    target: TargetModel, batch: Batch, attack: Attack, budget: Budget, p: AttackEvalParams
) -> dict[str, Tensor]:
    """The model under an attack, and how large the perturbations are.

    Raises BudgetViolationError when the attack leaves its budget.
    """
    with target.fabric.autocast():
        x_adv = attack.run(target.fused_model, batch.x, batch.y, budget, batch.noise, p)
    check_within_budget(batch.x, x_adv, budget, attack.name)
    delta = (x_adv - batch.x).flatten(1)  # (B, 3 * H * W)
    return {
        "logits": predict_logits(target.model, x_adv),
        "linf": delta.abs().amax(1),
        "l2": delta.norm(dim=1),
        "ssim": structural_similarity(batch.x, x_adv),
    }


def to_rows(
    context: Context,
    target: TargetModel,
    positions: np.ndarray,
    result: dict[str, Tensor],
    found_by: str,
) -> pd.DataFrame:
    """The clean or attacked images at these positions as rows of a table of predictions."""
    manifest, classes = context.dataset.manifest, context.dataset.classes
    labels = target.labels[positions]
    probability = result["logits"].softmax(1).numpy()  # (M, K)
    return (
        manifest.iloc[target.split.rows[positions]][["path", "group", "label"]]
        .reset_index(drop=True)
        .assign(
            attack=found_by,
            found_by=found_by,
            norm=context.attack.norm,
            eps=0.0,
            seed=target.seed,
            steps=0,
            prediction=np.array(classes)[probability.argmax(1)],
            confidence=probability.max(1),
            margin=-margin_loss(result["logits"], labels).numpy(),
            linf=result["linf"].numpy(),
            l2=result["l2"].numpy(),
            ssim=result["ssim"].numpy(),
            **dict(zip(probability_columns(classes), probability.T, strict=True)),
        )
    )


def clean_rows(context: Context, target: TargetModel, step: str) -> pd.DataFrame:
    """The rows without attack, in the order of the split."""
    result = context.steps.run(step, target, target.everything, predict_clean)
    return to_rows(context, target, target.everything, result, CLEAN)


def worst_so_far(rows: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """The worst case of each image, in the order of the clean rows."""
    worst = worst_case(rows).set_index("path")
    return worst.loc[clean["path"]].reset_index()[list(clean)]


def attack_rows(
    context: Context,
    target: TargetModel,
    previous: pd.DataFrame,
    attack: Attack,
    budget: Budget,
    p: AttackEvalParams,
    step: str,
) -> pd.DataFrame:
    """All images under an attack: what it doesn't make worse stays as in ``previous``.

    Only images that ``previous`` has as classified correctly are attacked.
    """
    remaining = np.flatnonzero(is_correct(previous))
    chosen = target.stratified(remaining, p.subset if attack.on_subset else len(remaining))
    rows = previous
    if len(chosen):
        result = context.steps.run(
            step,
            target,
            chosen,
            attack_batch,
            attack,
            budget,
            p,
            others_correct=len(remaining) - len(chosen),
        )
        attacked = to_rows(context, target, chosen, result, attack.name).assign(eps=budget.eps)
        rows = worst_so_far(pd.concat([previous, attacked]), previous)
    else:
        context.steps.skip()
    return label_rows(rows, attack.name, budget, attack.gradient_steps(p))


def label_rows(rows: pd.DataFrame, attack: str, budget: Budget, steps: int) -> pd.DataFrame:
    """The rows as those of one attack."""
    return rows.assign(attack=attack, norm=budget.norm.name, eps=budget.eps, steps=steps)


def schedule(context: Context) -> list[tuple[Attack, Budget, AttackEvalParams]]:
    """What is run in which order at first: ε ascending, cheap before expensive.

    At other ε than the budget's only PGD, with fewer steps.
    """
    p, budget = context.p, context.attack.budget
    order: list[tuple[Attack, Budget, AttackEvalParams]] = []
    apart = [eps for eps in context.attack.eps_grid if abs(eps - budget.eps) > 1e-3 * budget.eps]
    for eps in sorted([*apart, budget.eps]):
        if eps == budget.eps:
            order += [(attack, budget, p) for attack in SUITE]
        else:
            order.append((pgd, budget.with_eps(eps), p.for_curve()))
    return order


def run(context: Context) -> dict[str, Any]:
    """predictions.csv, attacks.csv, ensemble.json.

    Along the robustness curve PGD keeps what it found at a smaller ε: an image misclassified there
    is so within the larger one. The attacks of the ensemble run one after the other, each on what
    none before it found, so that its rows hold the worst case.
    """
    target, p, budget = context.target, context.p, context.attack.budget
    clean = at_smaller_eps = clean_rows(context, target, "clean")
    rows = [clean]
    further = further_attacks(context)
    order = schedule(context) + [(attack, budget, p) for attack in further]
    for attack, limit, settings in order:
        keeps = attack.starts_from == "smaller eps"
        previous, step = at_smaller_eps if keeps else clean, f"{attack.name} {limit.short}"
        rows.append(attack_rows(context, target, previous, attack, limit, settings, step))
        if keeps:
            at_smaller_eps = rows[-1]

    classes = len(context.dataset.classes)
    worst = worst_so_far(within(pd.concat(rows), budget.eps), clean)
    config = ensemble_settings(context, images=int(is_correct(worst).sum()))
    for attack in ensemble(p, classes):
        remaining = int(is_correct(worst).sum())
        step = f"{attack.name} {budget.short}"
        worst = attack_rows(context, target, worst, attack, budget, p, step)
    config["square_remaining"] = remaining  # Square came last
    config["square_images"] = min(remaining, p.subset) if attack.on_subset else remaining
    rows.append(label_rows(worst, config["name"], budget, p.aa_steps))
    summary = replace(apgd, name=config["name"], label=f"Ensemble ({config['name']})")
    return {
        "predictions": validate(pd.concat(rows, ignore_index=True)),
        "attacks": describe([*SUITE, *further, summary]),
        "ensemble": config,
    }


def ensemble_settings(context: Context, images: int) -> dict[str, Any]:
    """What the ensemble consists of, to be reported with its result. images: that it attacked."""
    p, classes = context.p, len(context.dataset.classes)
    targets = p.targets if p.ensemble == "lean" else MAX_TARGETS
    return {
        "name": ensemble_name(p, classes),
        "attacks": [attack.name for attack in ensemble(p, classes)],
        "iterations": p.aa_steps,
        "queries": p.aa_queries,
        "target_classes": min(targets, classes - 1),
        "images": images,
        "seed": context.target.seed,
        "library": f"pyautoattack {version('pyautoattack')}",
    }


def describe(attacks: Iterable[Attack]) -> pd.DataFrame:
    """Rows of attacks.csv."""
    rows = [(attack.name, attack.label, attack.kind) for attack in attacks]
    return pd.DataFrame(rows, columns=list(ATTACKS.columns))


def further_attacks(context: Context) -> list[Attack]:
    """Those that were prepared without the test images."""
    attacks = []
    if context.name in context.perturbations:
        attacks.append(add_perturbation(context.perturbations[context.name]))
    if context.surrogate:
        attacks.append(pgd_on(context.surrogate.fused_model, surrogate=True))
    return attacks


def count_steps(context: Context) -> int:
    """Of this measurement."""
    further = 1 + (context.surrogate is not None)
    last = ensemble(context.p, len(context.dataset.classes))
    return 1 + len(schedule(context)) + further + len(last)


MEASUREMENT = Measurement(run, (PREDICTIONS, ATTACKS), count_steps)
