"""Every attack and budget on every image of a split: the table that all later numbers come from."""

import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.core.attacks import Attack, Noise, attacks_at_budget, curve_attack, image_noise, verify
from stages.core.batches import Split
from stages.core.devices import crafting
from stages.core.params import Attack as ThreatModel
from stages.core.params import AttackEval
from stages.core.perturbations import attack_mode, lead
from stages.core.predictions import CLEAN, probability_columns
from stages.core.store import Store


def score(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) in eval mode and full precision, whatever the attack was crafted in."""
    with attack_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return model(x)


def attack_split(
    fabric: Fabric,
    model: nn.Module,
    twin: nn.Module,
    store: Store,
    split: Split,
    threat: ThreatModel,
    p: AttackEval,
    seed: int,
) -> pd.DataFrame:
    """One row per image, attack and budget; the columns are those of predictions.py.

    Attacks are crafted on ``twin``, the same function as ``model`` (models.folded), and scored on ``model``.

    The curve climbs its budgets: an image broken within a smaller budget is broken within the larger one, by the same x_adv.
    Raises BudgetError when an attack leaves its budget.
    """
    tables = []
    starts = range(0, len(split), p.batch_size)
    for start in tqdm(starts, "attacking", unit="batch", leave=False, disable=not sys.stderr.isatty()):
        positions = np.arange(start, min(start + p.batch_size, len(split)))
        rows = split.rows[positions]
        x, y = split.batch(positions, fabric.device)
        noise = image_noise(seed, rows, x.shape[1:], x)
        images = store.manifest.iloc[rows][["path", "group", "label"]].reset_index(drop=True)
        for name, eps, steps, x_adv, logits in attack_batch(fabric, model, twin, x, y, noise, threat, p):
            verify(x, x_adv, eps, name)
            tables.append(_rows(images, store.classes, name, eps, seed, steps, x_adv - x, y, logits))
    return pd.concat(tables, ignore_index=True)


def attack_batch(
    fabric: Fabric, model: nn.Module, twin: nn.Module, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel, p: AttackEval
) -> Iterator[tuple[str, float, int, Tensor, Tensor]]:
    """(name, eps, steps, x_adv, logits of x_adv) of every attack and budget, the clean images first."""
    worst, logits = x, score(model, x)
    yield CLEAN, 0.0, 0, x, logits
    clean = logits
    for eps in sorted({*threat.eps_grid, threat.eps}):
        for name, (attack, steps) in attacks_at_budget(p).items() if eps == threat.eps else ():
            if name != "pgd":
                yield name, eps, steps, *_attack_survivors(fabric, model, twin, x, y, noise, attack, eps, x, clean)
        attack, steps = attacks_at_budget(p)["pgd"] if eps == threat.eps else curve_attack(p)
        worst, logits = _attack_survivors(fabric, model, twin, x, y, noise, attack, eps, worst, logits)
        yield "pgd", eps, steps, worst, logits


def _attack_survivors(
    fabric: Fabric,
    model: nn.Module,
    twin: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    attack: Attack,
    eps: float,
    known: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attack the images that ``known`` (with these logits) doesn't break; for each keep the image further over the boundary."""
    todo = (lead(logits, y) <= 0).nonzero().squeeze(1)
    if not len(todo):
        return known, logits
    with crafting(fabric):
        x_adv = attack(twin, x[todo], y[todo], eps, lambda distribution, draw: noise(distribution, draw)[todo])
    scored = score(model, x_adv)
    better = lead(scored, y[todo]) > lead(logits[todo], y[todo])
    known, logits = known.clone(), logits.clone()
    known[todo[better]], logits[todo[better]] = x_adv[better], scored[better]
    return known, logits


def _rows(
    images: pd.DataFrame,
    classes: tuple[str, ...],
    name: str,
    eps: float,
    seed: int,
    steps: int,
    delta: Tensor,
    y: Tensor,
    logits: Tensor,
) -> pd.DataFrame:
    probability = logits.softmax(1).cpu().numpy()  # (B, K)
    flat = delta.flatten(1)  # (B, 3 * H * W)
    return images.assign(
        attack=name,
        eps=eps,
        seed=seed,
        steps=steps,
        prediction=np.array(classes)[probability.argmax(1)],
        confidence=probability.max(1),
        margin=-lead(logits, y).cpu().numpy(),
        linf=flat.abs().amax(1).cpu().numpy(),
        l2=flat.norm(dim=1).cpu().numpy(),
        **dict(zip(probability_columns(classes), probability.T, strict=True)),
    )
