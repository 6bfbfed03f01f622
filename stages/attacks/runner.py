"""Every attack and eps on every image of a split: the table that all later metrics come from."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from stages.attacks import suite
from stages.attacks.ensemble import (
    SQUARE,
    SQUARE_IMAGES,
    ensemble_attacks,
    ensemble_config,
    ensemble_name,
)
from stages.attacks.perturbations import margin_loss
from stages.attacks.similarity import structural_similarity
from stages.attacks.suite import (
    Attack,
    NoiseSampler,
    attack_suite,
    check_within_budget,
    eps_sweep_attack,
    per_image_noise,
)
from stages.core.checkpoints import StepCache
from stages.core.dataset import ImageDataset
from stages.core.distributed import gather
from stages.core.params import AttackEvalParams, ThreatModel
from stages.core.predictions import CLEAN, Ensemble, probability_columns
from stages.models.batches import DatasetSplit
from stages.models.classifier import ModelError
from stages.models.inference import predict_logits


@dataclass(frozen=True)
class ModelUnderAttack:
    """A model and the N images of a split that it is attacked on.

    Attributes:
        model: what is evaluated.
        fused_model: the same function, cheaper to differentiate (`classifier.fuse_batchnorm`): what attacks are computed on.
        norm: of the threat model.
        batch_size: images attacked at once; changes no result.
        seed: of the noise.
    """

    fabric: Fabric
    model: nn.Module
    fused_model: nn.Module
    split: DatasetSplit
    norm: str
    batch_size: int
    seed: int

    def subset(self, positions: np.ndarray) -> Self:
        """The same with the images at these positions of its split only; their noise stays theirs."""
        return replace(self, split=self.split.subset(positions))

    def stratified_positions(self, count: int) -> np.ndarray:
        """Positions of at most ``count`` images, each class in its proportion."""
        return self.split.stratified_positions(count, self.seed)

    def load(self, positions: np.ndarray) -> tuple[Tensor, Tensor, NoiseSampler]:
        """(x, y, noise) of the images at these positions."""
        x, y = self.split.load(positions, self.fabric.device)
        return x, y, per_image_noise(self.seed, self.split.rows[positions], x.shape[1:], x)

    def batches(
        self, positions: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor, NoiseSampler]]:
        """(positions, x, y, noise) of the images at these positions, a batch at a time."""
        for start in range(0, len(positions), self.batch_size):
            batch = positions[start : start + self.batch_size]
            yield batch, *self.load(batch)

    def map_batches(
        self,
        positions: np.ndarray,
        compute: Callable[[np.ndarray, Tensor, Tensor, NoiseSampler], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """``compute`` on the batches of the images at these positions, divided among all processes of ``fabric``.

        Args:
            positions: (M,).
            compute: (positions, x, y, noise) of B images -> tensors (B, ...).

        Returns:
            Tensors (M, ...) on the CPU, in the order of ``positions``; an empty dict without images.
        """
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        parts = gather(
            self.fabric,
            lambda: [
                {name: values.cpu() for name, values in compute(*batch).items()}
                for batch in self.batches(positions[rank::processes])
            ],
        )
        batches = [batch for part in parts for batch in part]
        # An image in each process by turns, hence in another order: back to that of the positions.
        order = torch.cat(
            [torch.arange(len(positions))[process::processes] for process in range(processes)]
        ).argsort()
        return {
            name: torch.cat([batch[name] for batch in batches])[order]
            for name in (batches[0] if batches else ())
        }

    def generate(
        self, attack: Attack, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, name: str
    ) -> Tensor:
        """x_adv of an attack. Raises BudgetViolationError when the attack leaves its budget."""
        with self.fabric.autocast():
            x_adv = attack(self.fused_model, x, y, eps, noise)
        check_within_budget(x, x_adv, eps, norm=self.norm, name=name)
        return x_adv


@dataclass(frozen=True)
class AttackResult:
    """The model's logits (N, K) for N images under attack, the size (N,) of the perturbations, and which attack found each."""

    logits: Tensor
    linf: Tensor
    l2: Tensor
    ssim: Tensor
    found_by: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As a StepCache keeps it."""
        return vars(self) | {"found_by": self.found_by.tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(**(state | {"found_by": np.array(state["found_by"], dtype=object)}))


def cached_result(cache: StepCache, step: str, compute: Callable[[], AttackResult]) -> AttackResult:
    """What ``compute`` returns, or returned before an interruption."""
    return AttackResult.from_dict(cache.get_or_compute(step, lambda: compute().to_dict()))


def clean_result(target: ModelUnderAttack) -> AttackResult:
    """The model on the clean images. Raises ModelError when it answers with anything but numbers."""

    def compute(
        positions: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler
    ) -> dict[str, Tensor]:
        logits = predict_logits(target.model, x)
        if len(images := (~logits.isfinite()).any(1).nonzero()):
            raise ModelError(
                f"expected finite logits of the model, got {logits[images[0, 0]].tolist()}"
            )
        return {"logits": logits}

    zeros, ones = torch.zeros(len(target.split)), torch.ones(len(target.split))
    logits = target.map_batches(np.arange(len(target.split)), compute)["logits"]
    return AttackResult(logits, zeros, zeros, ones, np.full(len(target.split), CLEAN, dtype=object))


def attack_remaining(
    target: ModelUnderAttack,
    previous: AttackResult,
    name: str,
    attack: Attack,
    eps: float,
    positions: np.ndarray,
) -> AttackResult:
    """Attack the images at ``positions`` that ``previous`` left correctly classified; the larger margin loss counts."""

    def compute(
        positions: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler
    ) -> dict[str, Tensor]:
        x_adv = target.generate(attack, x, y, eps, noise, name)
        delta = (x_adv - x).flatten(1)  # (B, 3 * H * W)
        return {
            "logits": predict_logits(target.model, x_adv),
            "linf": delta.abs().amax(1),
            "l2": delta.norm(dim=1),
            "ssim": structural_similarity(x, x_adv),
        }

    labels = torch.from_numpy(target.split.labels[target.split.rows])
    remaining = np.intersect1d(positions, correct_positions(previous, labels))
    if not len(remaining):
        return previous
    attacked = target.map_batches(remaining, compute)
    improved = margin_loss(attacked["logits"], labels[remaining]) > margin_loss(
        previous.logits[remaining], labels[remaining]
    )
    rows, found_by = torch.from_numpy(remaining)[improved], previous.found_by.copy()
    found_by[rows] = name
    merged = {
        field: getattr(previous, field).index_copy(0, rows, values[improved])
        for field, values in attacked.items()
    }
    return AttackResult(**merged, found_by=found_by)


def run_attack_suite(
    target: ModelUnderAttack,
    dataset: ImageDataset,
    threat: ThreatModel,
    p: AttackEvalParams,
    cache: StepCache,
    prepared: Mapping[str, tuple[Attack, int]] = MappingProxyType({}),
) -> tuple[pd.DataFrame, Ensemble]:
    """predictions.csv, one row per image, attack and eps, and ensemble.json.

    ``prepared``: further attacks at ``threat.eps``, with their gradient steps on an image, which were computed without these
    images.

    eps ascends along the robustness curve: an image misclassified within a smaller eps is so within the larger one, by the
    same x_adv. The attacks of the ensemble run one after the other, each on what none before it found, so that its rows hold
    the worst case. What is finished is in the cache.
    """
    labels = torch.from_numpy(target.split.labels[target.split.rows])
    everything = np.arange(len(labels))

    clean = last_pgd = cached_result(cache, CLEAN, partial(clean_result, target))
    worst = clean
    rows = [_to_rows(dataset, target, CLEAN, 0.0, 0, clean)]
    schedule = _schedule(threat, p)
    schedule += [(name, threat.eps, steps, attack) for name, (attack, steps) in prepared.items()]
    for name, eps, steps, attack in tqdm(
        schedule, "attacking", unit="attack", leave=False, disable=not sys.stderr.isatty()
    ):
        previous = last_pgd if name == "pgd" else clean
        compute = partial(attack_remaining, target, previous, name, attack, eps, everything)
        result = cached_result(cache, f"{threat.norm} {name} {eps!r}", compute)
        rows.append(_to_rows(dataset, target, name, eps, steps, result))
        if name == "pgd":
            last_pgd = result
        if eps <= threat.eps:
            worst = worst_case_result(worst, result, labels)

    classes, initial = len(dataset.classes), worst
    for name, attack in ensemble_attacks(p, classes, norm=threat.norm, seed=target.seed).items():
        positions = remaining = correct_positions(worst, labels)
        if name == SQUARE and p.ensemble == "lean":
            positions = remaining[target.subset(remaining).stratified_positions(SQUARE_IMAGES)]
        compute = partial(attack_remaining, target, worst, name, attack, threat.eps, positions)
        worst = cached_result(cache, f"{threat.norm} {name}", compute)
    rows.append(_to_rows(dataset, target, ensemble_name(p, classes), threat.eps, p.aa_steps, worst))
    attacked = {"images": len(correct_positions(initial, labels))}
    attacked |= {
        "square_images": len(positions),
        "square_remaining": len(remaining),
    }  # it came last
    return pd.concat(rows, ignore_index=True), ensemble_config(
        p, classes, seed=target.seed, **attacked
    )


def run_calibration(
    target: ModelUnderAttack,
    dataset: ImageDataset,
    threat: ThreatModel,
    p: AttackEvalParams,
    cache: StepCache,
) -> pd.DataFrame:
    """calibration.csv: the images of ``target`` clean, and under PGD at ``threat.eps``.

    PGD at the smaller eps comes first, as in `run_attack_suite`: the scores of validation and test images under PGD are
    exchangeable only if both are computed in the same way.
    """
    everything = np.arange(len(target.split))
    clean = pgd = cached_result(cache, f"calibration {CLEAN}", partial(clean_result, target))
    rows = [_to_rows(dataset, target, CLEAN, 0.0, 0, clean)]
    for name, eps, steps, attack in _schedule(threat, p):
        if name == "pgd" and eps <= threat.eps:
            compute = partial(attack_remaining, target, pgd, name, attack, eps, everything)
            pgd = cached_result(cache, f"calibration {name} {eps!r}", compute)
            if eps == threat.eps:
                rows.append(_to_rows(dataset, target, name, eps, steps, pgd))
    return pd.concat(rows, ignore_index=True)


def correct_positions(result: AttackResult, labels: Tensor) -> np.ndarray:
    """Positions of the images that are classified correctly under the attack."""
    return (margin_loss(result.logits, labels) <= 0).numpy().nonzero()[0]


def _schedule(threat: ThreatModel, p: AttackEvalParams) -> list[tuple[str, float, int, Attack]]:
    """(name, eps, steps, attack) in the order of running: eps ascending, cheap before expensive."""
    schedule: list[tuple[str, float, int, Attack]] = []
    for eps in sorted({*threat.eps_grid, threat.eps}):
        attacks = (
            attack_suite(p, norm=threat.norm)
            if eps == threat.eps
            else {"pgd": eps_sweep_attack(p, norm=threat.norm)}
        )
        schedule += [(name, eps, steps, attack) for name, (attack, steps) in attacks.items()]
    return schedule


def worst_case_result(first: AttackResult, second: AttackResult, labels: Tensor) -> AttackResult:
    """Per image the result of the larger margin loss, the first at a tie."""
    worse = margin_loss(second.logits, labels) > margin_loss(first.logits, labels)  # (N,)
    return AttackResult(
        torch.where(worse[:, None], second.logits, first.logits),
        torch.where(worse, second.linf, first.linf),
        torch.where(worse, second.l2, first.l2),
        torch.where(worse, second.ssim, first.ssim),
        np.where(worse.numpy(), second.found_by, first.found_by),
    )


def run_transfer_attacks(
    models: Mapping[str, ModelUnderAttack],
    dataset: ImageDataset,
    eps: float,
    attacks: Mapping[str, Mapping[str, tuple[Attack, int]]],
    cache: StepCache,
) -> pd.DataFrame:
    """transfer.csv: each model under attacks that were made for another one.

    Args:
        models: by name.
        dataset: of their images.
        eps: in pixel units.
        attacks: attack -> model that it was made for -> the attack, and its gradient steps on an image.
        cache: of the stage.
    """
    tables = []
    for (source, target), name in itertools.product(itertools.permutations(models, 2), attacks):
        attack, steps = attacks[name][source]
        compute = partial(_attack_all, models[target], name, attack, eps)
        result = cached_result(cache, f"{name} to {target}", compute)
        rows = _to_rows(dataset, models[target], name, eps, steps, result)
        tables.append(rows.assign(target=target))
    return pd.concat(tables, ignore_index=True)


def _attack_all(target: ModelUnderAttack, name: str, attack: Attack, eps: float) -> AttackResult:
    """All images that are classified correctly without attack."""
    return attack_remaining(
        target, clean_result(target), name, attack, eps, np.arange(len(target.split))
    )


def pgd_on(source: ModelUnderAttack, steps: int) -> tuple[Attack, int]:
    """PGD on another model than the one that is attacked, with all its steps; and their number."""

    def attack(_: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler) -> Tensor:
        pgd = partial(suite.pgd, steps=steps, restarts=1, norm=source.norm, early_stop_margin=None)
        return pgd(source.fused_model, x, y, eps, noise)

    return attack, steps


def _to_rows(
    dataset: ImageDataset,
    target: ModelUnderAttack,
    name: str,
    eps: float,
    steps: int,
    result: AttackResult,
) -> pd.DataFrame:
    rows = target.split.rows
    labels = torch.from_numpy(target.split.labels[rows])
    probability = result.logits.softmax(1).numpy()  # (N, K)
    return (
        dataset.manifest.iloc[rows][["path", "group", "label"]]
        .reset_index(drop=True)
        .assign(
            attack=name,
            found_by=result.found_by,
            eps=eps,
            seed=target.seed,
            steps=steps,
            prediction=np.array(dataset.classes)[probability.argmax(1)],
            confidence=probability.max(1),
            margin=-margin_loss(result.logits, labels).numpy(),
            linf=result.linf.numpy(),
            l2=result.l2.numpy(),
            ssim=result.ssim.numpy(),
            **dict(zip(probability_columns(dataset.classes), probability.T, strict=True)),
        )
    )
