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

from stages.attacks import autoattack, perturbations
from stages.attacks.perturbations import margin_loss
from stages.attacks.suite import Attack, NoiseSampler, attack_suite, eps_sweep_attack, per_image_noise, verify
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.params import Attack as ThreatModel
from stages.core.params import AttackEval
from stages.core.predictions import CLEAN, TRANSFER, probability_columns
from stages.models.batches import DatasetSplit
from stages.models.inference import predict_logits


@dataclass(frozen=True)
class ModelUnderAttack:
    """A model under attack and the N images of a split. ``model`` scores; attacks are crafted on ``twin``, the same function
    (models.folded). batch_size changes no result."""

    fabric: Fabric
    model: nn.Module
    twin: nn.Module
    split: DatasetSplit
    norm: str
    batch_size: int
    seed: int

    def at(self, positions: np.ndarray) -> "ModelUnderAttack":
        """The same with the images at these positions of its split only; their noise stays theirs."""
        return replace(self, split=DatasetSplit(self.split.images, self.split.labels, self.split.rows[positions]))

    def sample(self, count: int) -> np.ndarray:
        """Positions of at most ``count`` images, every class by its share."""
        return np.flatnonzero(np.isin(self.split.rows, self.split.stratified(count, self.seed).rows))

    def batches(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, Tensor, NoiseSampler]]:
        """(positions, x, y, noise) of the images at these positions, a batch at a time."""
        for start in range(0, len(positions), self.batch_size):
            part = positions[start : start + self.batch_size]
            x, y = self.split.batch(part, self.fabric.device)
            yield part, x, y, per_image_noise(self.seed, self.split.rows[part], x.shape[1:], x)

    def craft(self, attack: Attack, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, name: str) -> Tensor:
        """Verified x_adv. Raises BudgetViolationError when the attack leaves its budget."""
        with self.fabric.autocast():
            x_adv = attack(self.twin, x, y, eps, noise)
        verify(x, x_adv, eps, name, self.norm)
        return x_adv


@dataclass(frozen=True)
class AttackResult:
    """What the model says of N pictures, (N, K) logits; how far each is from its original, (N,); the attack that found it."""

    logits: Tensor
    linf: Tensor
    l2: Tensor
    found_by: np.ndarray

    def state(self) -> dict[str, Any]:
        """As a StepCache keeps it."""
        return vars(self) | {"found_by": self.found_by.tolist()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "AttackResult":
        return cls(**(state | {"found_by": np.array(state["found_by"], dtype=object)}))

    def replaced(self, where: Tensor, by: "AttackResult") -> "AttackResult":
        """``by`` at ``where`` (N,) bool, else itself."""
        return AttackResult(
            torch.where(where[:, None], by.logits, self.logits),
            torch.where(where, by.linf, self.linf),
            torch.where(where, by.l2, self.l2),
            np.where(where.numpy(), by.found_by, self.found_by),
        )


def recorded(journal: StepCache, name: str, work: Callable[[], AttackResult]) -> AttackResult:
    """What ``work`` gives, or gave before a kill."""
    return AttackResult.of(journal(name, lambda: work().state()))


def clean_result(target: ModelUnderAttack) -> AttackResult:
    """The images as they are."""
    logits = [predict_logits(target.model, x).cpu() for _, x, _, _ in target.batches(np.arange(len(target.split)))]
    nothing = torch.zeros(len(target.split))
    return AttackResult(torch.cat(logits), nothing, nothing, np.full(len(target.split), CLEAN, dtype=object))


def attack_remaining(
    target: ModelUnderAttack, known: AttackResult, name: str, attack: Attack, eps: float, among: np.ndarray
) -> AttackResult:
    """Attack the images, of those at the positions ``among``, that ``known`` doesn't break; for each keep the picture that is
    further over the boundary."""
    labels = torch.from_numpy(target.split.labels[target.split.rows])
    unbroken = among[(margin_loss(known.logits, labels) <= 0).numpy()[among]]
    logits, linf, l2, found_by = (known.logits.clone(), known.linf.clone(), known.l2.clone(), known.found_by.copy())
    for part, x, y, noise in target.batches(unbroken):
        x_adv = target.craft(attack, x, y, eps, noise, name)
        scored = predict_logits(target.model, x_adv).cpu()
        better = (margin_loss(scored, y.cpu()) > margin_loss(logits[part], y.cpu())).numpy()
        delta = (x_adv - x).flatten(1)[better].cpu()  # (better, 3 * H * W)
        logits[part[better]], found_by[part[better]] = scored[better], name
        linf[part[better]], l2[part[better]] = delta.abs().amax(1), delta.norm(dim=1)
    return AttackResult(logits, linf, l2, found_by)


def run_attack_suite(
    target: ModelUnderAttack, store: ImageDataset, threat: ThreatModel, p: AttackEval, subset: np.ndarray, journal: StepCache
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
    done = {(CLEAN, 0.0): record(CLEAN, lambda: clean_result(target))}
    rows = [_rows(store, target, everything, CLEAN, 0.0, 0, done[CLEAN, 0.0])]
    plan = _plan(threat, p)
    for name, eps, steps, attack in tqdm(plan, "attacking", unit="attack", leave=False, disable=not sys.stderr.isatty()):
        kept = [outcome for (earlier, _), outcome in done.items() if earlier in (CLEAN, "pgd")]
        known = kept[-1] if name == "pgd" else kept[0]
        done[name, eps] = record(f"{name} {eps!r}", partial(attack_remaining, target, known, name, attack, eps, everything))
        rows.append(_rows(store, target, everything, name, eps, steps, done[name, eps]))

    worst = worst_case_result(done, threat.eps, labels)
    for name, attack in parts.items():
        worst = record(name, partial(attack_remaining, target, worst, name, attack, threat.eps, subset))
    rows.append(_rows(store, target, subset, autoattack.ensemble_name(classes), threat.eps, p.aa_steps, worst))
    return pd.concat(rows, ignore_index=True)


def _plan(threat: ThreatModel, p: AttackEval) -> list[tuple[str, float, int, Attack]]:
    """(name, eps, steps, attack) in the order of running: budgets ascending, cheap before dear."""
    plan: list[tuple[str, float, int, Attack]] = []
    for eps in sorted({*threat.eps_grid, threat.eps}):
        named = attack_suite(p, threat.norm) if eps == threat.eps else {"pgd": eps_sweep_attack(p, threat.norm)}
        plan += [(name, eps, steps, attack) for name, (attack, steps) in named.items()]
    return plan


def transfer(
    models: Mapping[str, ModelUnderAttack],
    store: ImageDataset,
    eps: float,
    steps: int,
    positions: np.ndarray,
    journal: StepCache,
) -> pd.DataFrame:
    """transfer.csv: each of the models by name under pictures that PGD made for another, with all its steps."""
    parts = []
    for source, aim in itertools.permutations(models, 2):

        def attack(
            _: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, maker: ModelUnderAttack = models[source]
        ) -> Tensor:
            start, alpha = noise("uniform", 0), 2.5 * eps / steps
            return perturbations.pgd(maker.twin, x, y, eps, start, alpha=alpha, steps=steps, norm=maker.norm)

        some, everything = models[aim].at(positions), np.arange(len(positions))

        def work(some: ModelUnderAttack = some, attack: Attack = attack, among: np.ndarray = everything) -> AttackResult:
            return attack_remaining(some, clean_result(some), TRANSFER, attack, eps, among)

        outcome = recorded(journal, f"transfer to {aim}", work)
        parts.append(_rows(store, some, everything, TRANSFER, eps, steps, outcome).assign(target=aim))
    return pd.concat(parts, ignore_index=True)


def worst_case_result(done: dict[tuple[str, float], AttackResult], eps: float, labels: Tensor) -> AttackResult:
    """Per image the outcome, of attacks of at most this budget, at which a wrong class leads by most."""
    candidates = [outcome for (_, budget), outcome in done.items() if budget <= eps]
    worst = candidates[0]
    for other in candidates[1:]:
        worst = worst.replaced(margin_loss(other.logits, labels) > margin_loss(worst.logits, labels), other)
    return worst


def _rows(
    store: ImageDataset,
    target: ModelUnderAttack,
    positions: np.ndarray,
    name: str,
    eps: float,
    steps: int,
    outcome: AttackResult,
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
            margin=-margin_loss(logits, labels).numpy(),
            linf=outcome.linf[positions].numpy(),
            l2=outcome.l2[positions].numpy(),
            **dict(zip(probability_columns(store.classes), probability.T, strict=True)),
        )
    )
