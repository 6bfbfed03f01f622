"""Every attack and budget on every image of a split: the table that all later numbers come from."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.core import autoattack, perturbations
from stages.core.attacks import Attack, Noise, attacks_at_budget, curve_attack, image_noise, verify
from stages.core.batches import Split
from stages.core.checkpoints import Journal
from stages.core.params import Attack as ThreatModel
from stages.core.params import AttackEval
from stages.core.perturbations import attack_mode, lead
from stages.core.predictions import CLEAN, TRANSFER, probability_columns
from stages.core.store import Store


def score(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) in eval mode and full precision, whatever the attack was crafted in."""
    with attack_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return model(x)


@dataclass(frozen=True)
class Target:
    """A model under attack and the N images of a split. ``model`` scores; attacks are crafted on ``twin``, the same function
    (models.folded). batch_size changes no result."""

    fabric: Fabric
    model: nn.Module
    twin: nn.Module
    split: Split
    norm: str
    batch_size: int
    seed: int

    def at(self, positions: np.ndarray) -> "Target":
        """The same with the images at these positions of its split only; their noise stays theirs."""
        return replace(self, split=Split(self.split.images, self.split.labels, self.split.rows[positions]))

    def sample(self, count: int) -> np.ndarray:
        """Positions of at most ``count`` images, every class by its share."""
        return np.flatnonzero(np.isin(self.split.rows, self.split.stratified(count, self.seed).rows))

    def batches(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Noise]]:
        """(positions, x, y, noise) of the images at these positions, a batch at a time."""
        for start in range(0, len(positions), self.batch_size):
            part = positions[start : start + self.batch_size]
            x, y = self.split.batch(part, self.fabric.device)
            yield part, x, y, image_noise(self.seed, self.split.rows[part], x.shape[1:], x)

    def craft(self, attack: Attack, x: Tensor, y: Tensor, eps: float, noise: Noise, name: str) -> Tensor:
        """Verified x_adv. Raises BudgetError when the attack leaves its budget."""
        with self.fabric.autocast():
            x_adv = attack(self.twin, x, y, eps, noise)
        verify(x, x_adv, eps, name, self.norm)
        return x_adv


@dataclass(frozen=True)
class Outcome:
    """What the model says of N pictures, (N, K) logits; how far each is from its original, (N,); the attack that found it."""

    logits: Tensor
    linf: Tensor
    l2: Tensor
    found_by: np.ndarray

    def state(self) -> dict[str, Any]:
        """As a Journal keeps it."""
        return vars(self) | {"found_by": self.found_by.tolist()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Outcome":
        return cls(**(state | {"found_by": np.array(state["found_by"], dtype=object)}))

    def replaced(self, where: Tensor, by: "Outcome") -> "Outcome":
        """``by`` at ``where`` (N,) bool, else itself."""
        return Outcome(
            torch.where(where[:, None], by.logits, self.logits),
            torch.where(where, by.linf, self.linf),
            torch.where(where, by.l2, self.l2),
            np.where(where.numpy(), by.found_by, self.found_by),
        )


def recorded(journal: Journal, name: str, work: Callable[[], Outcome]) -> Outcome:
    """What ``work`` gives, or gave before a kill."""
    return Outcome.of(journal(name, lambda: work().state()))


def unattacked(target: Target) -> Outcome:
    """The images as they are."""
    logits = [score(target.model, x).cpu() for _, x, _, _ in target.batches(np.arange(len(target.split)))]
    nothing = torch.zeros(len(target.split))
    return Outcome(torch.cat(logits), nothing, nothing, np.full(len(target.split), CLEAN, dtype=object))


def attack_survivors(target: Target, known: Outcome, name: str, attack: Attack, eps: float, among: np.ndarray) -> Outcome:
    """Attack the images, of those at the positions ``among``, that ``known`` doesn't break; for each keep the picture that is
    further over the boundary."""
    labels = torch.from_numpy(target.split.labels[target.split.rows])
    unbroken = among[(lead(known.logits, labels) <= 0).numpy()[among]]
    logits, linf, l2, found_by = (known.logits.clone(), known.linf.clone(), known.l2.clone(), known.found_by.copy())
    for part, x, y, noise in target.batches(unbroken):
        x_adv = target.craft(attack, x, y, eps, noise, name)
        scored = score(target.model, x_adv).cpu()
        better = (lead(scored, y.cpu()) > lead(logits[part], y.cpu())).numpy()
        delta = (x_adv - x).flatten(1)[better].cpu()  # (better, 3 * H * W)
        logits[part[better]], found_by[part[better]] = scored[better], name
        linf[part[better]], l2[part[better]] = delta.abs().amax(1), delta.norm(dim=1)
    return Outcome(logits, linf, l2, found_by)


def attack_split(
    target: Target, store: Store, threat: ThreatModel, p: AttackEval, subset: np.ndarray, journal: Journal
) -> pd.DataFrame:
    """One row per image, attack and budget; the columns are those of predictions.py.

    The curve climbs its budgets: an image broken within a smaller budget is broken within the larger one, by the same x_adv.
    The small ensemble (autoattack.py) attacks the ``subset`` (positions): its parts one after the other, each what nothing
    before it broke, so that its rows hold the worst of all. What is finished is in the journal.
    """
    classes = len(store.classes)
    parts = autoattack.parts(classes, steps=p.aa_steps, queries=p.aa_queries, norm=threat.norm, seed=target.seed)
    labels = torch.from_numpy(target.split.labels[target.split.rows])
    everything = np.arange(len(labels))

    record = partial(recorded, journal)
    done = {(CLEAN, 0.0): record(CLEAN, lambda: unattacked(target))}
    rows = [_rows(store, target, everything, CLEAN, 0.0, 0, done[CLEAN, 0.0])]
    plan = _plan(threat, p)
    for name, eps, steps, attack in tqdm(plan, "attacking", unit="attack", leave=False, disable=not sys.stderr.isatty()):
        kept = [outcome for (earlier, _), outcome in done.items() if earlier in (CLEAN, "pgd")]
        known = kept[-1] if name == "pgd" else kept[0]
        done[name, eps] = record(f"{name} {eps!r}", partial(attack_survivors, target, known, name, attack, eps, everything))
        rows.append(_rows(store, target, everything, name, eps, steps, done[name, eps]))

    worst = worst_within(done, threat.eps, labels)
    for name, attack in parts.items():
        worst = record(name, partial(attack_survivors, target, worst, name, attack, threat.eps, subset))
    rows.append(_rows(store, target, subset, autoattack.ensemble_name(classes), threat.eps, p.aa_steps, worst))
    return pd.concat(rows, ignore_index=True)


def _plan(threat: ThreatModel, p: AttackEval) -> list[tuple[str, float, int, Attack]]:
    """(name, eps, steps, attack) in the order of running: budgets ascending, cheap before dear."""
    plan: list[tuple[str, float, int, Attack]] = []
    for eps in sorted({*threat.eps_grid, threat.eps}):
        named = attacks_at_budget(p, threat.norm) if eps == threat.eps else {"pgd": curve_attack(p, threat.norm)}
        plan += [(name, eps, steps, attack) for name, (attack, steps) in named.items()]
    return plan


def transfer(
    models: Mapping[str, Target], store: Store, eps: float, steps: int, positions: np.ndarray, journal: Journal
) -> pd.DataFrame:
    """transfer.csv: each of the models by name under pictures that PGD made for another, with all its steps."""
    parts = []
    for source, aim in itertools.permutations(models, 2):

        def attack(_: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Noise, maker: Target = models[source]) -> Tensor:
            start, alpha = noise("uniform", 0), 2.5 * eps / steps
            return perturbations.pgd(maker.twin, x, y, eps, start, alpha=alpha, steps=steps, norm=maker.norm)

        some, everything = models[aim].at(positions), np.arange(len(positions))

        def work(some: Target = some, attack: Attack = attack, among: np.ndarray = everything) -> Outcome:
            return attack_survivors(some, unattacked(some), TRANSFER, attack, eps, among)

        outcome = recorded(journal, f"transfer to {aim}", work)
        parts.append(_rows(store, some, everything, TRANSFER, eps, steps, outcome).assign(target=aim))
    return pd.concat(parts, ignore_index=True)


def worst_within(done: dict[tuple[str, float], Outcome], eps: float, labels: Tensor) -> Outcome:
    """Per image the outcome, of attacks of at most this budget, at which a wrong class leads by most."""
    candidates = [outcome for (_, budget), outcome in done.items() if budget <= eps]
    worst = candidates[0]
    for other in candidates[1:]:
        worst = worst.replaced(lead(other.logits, labels) > lead(worst.logits, labels), other)
    return worst


def _rows(
    store: Store, target: Target, positions: np.ndarray, name: str, eps: float, steps: int, outcome: Outcome
) -> pd.DataFrame:
    rows = target.split.rows[positions]
    labels = torch.from_numpy(target.split.labels[rows])
    logits = outcome.logits[positions]
    probability = logits.softmax(1).numpy()  # (M, K)
    return (
        store.manifest.iloc[rows][["path", "group", "label"]]
        .reset_index(drop=True)
        .assign(
            attack=name,
            found_by=outcome.found_by[positions],
            eps=eps,
            seed=target.seed,
            steps=steps,
            prediction=np.array(store.classes)[probability.argmax(1)],
            confidence=probability.max(1),
            margin=-lead(logits, labels).numpy(),
            linf=outcome.linf[positions].numpy(),
            l2=outcome.l2[positions].numpy(),
            **dict(zip(probability_columns(store.classes), probability.T, strict=True)),
        )
    )
