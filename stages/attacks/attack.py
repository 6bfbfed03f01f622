"""What an attack is: a function, and the record of what must be known to run it and to report it.

An attack is ``run(model, x, y, budget, noise, p) -> x_adv``: x and x_adv float32 (B, 3, H, W) in
[0, 1], the model returning logits (B, K), ``p`` the section ``attack_eval`` of the parameters. It
is meant for images that are classified correctly; whether x_adv is worse than x is for the caller
to see, who evaluates the model on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stages.core.norms import Budget
from stages.core.params import AttackEvalParams

# Attacks may run in bfloat16, evaluation runs in float32: an attack stops only at this margin
# loss (logits).
EARLY_STOP_MARGIN = 0.1

Kind = Literal["noise", "single-step", "iterative", "ensemble", "transfer", "universal"]


@dataclass(frozen=True)
class Noise:
    """Random numbers that belong to images, not to a batch: neither its size nor order matters.

    Attributes:
        seed: of the run.
        rows: (B,) row numbers of the images in the dataset.
        like: (B, 3, H, W), on the device where the numbers are needed.
    """

    seed: int
    rows: np.ndarray
    like: Tensor

    def __call__(self, distribution: str, sample: int) -> Tensor:
        """(B, 3, H, W): uniform in [-1, 1] or standard gaussian, one for each sample number."""
        out = torch.empty(len(self.rows), *self.like.shape[1:])
        for image, row in zip(out, self.rows, strict=True):
            sequence = np.random.SeedSequence([self.seed, int(row), sample])
            state = sequence.generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state >> 1))
            if distribution == "uniform":
                image.uniform_(-1, 1, generator=generator)
            else:
                image.normal_(generator=generator)
        return out.to(self.like)

    def of(self, chosen: Tensor) -> "Noise":
        """The noise of the images at these positions (M,) of the batch, or where (B,) is true."""
        return Noise(self.seed, self.rows[chosen.cpu().numpy()], self.like[chosen])


class AttackFunction(Protocol):
    """See the top of this file."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: Budget,
        noise: Noise,
        p: AttackEvalParams,
    ) -> Tensor:
        """x_adv (B, 3, H, W)."""


@dataclass(frozen=True)
class Attack:
    """An attack with its record.

    Attributes:
        name: in tables.
        label: in texts; ``{steps}`` stands for its gradient steps.
        kind: what it has in common with others; diagnostics compare kinds.
        run: the function.
        steps: gradient steps of one run on an image, or the key of `attack_eval` that has them.
        starts_from: ``image``: each image that is classified correctly without attack; ``smaller
            eps``: what it found there, it keeps; ``survivors``: only what no attack before it
            found is attacked.
        on_subset: on at most `attack_eval.subset` of them.
    """

    name: str
    label: str
    kind: Kind
    run: AttackFunction
    steps: int | str = 0
    starts_from: Literal["image", "smaller eps", "survivors"] = "image"
    on_subset: bool = False

    def gradient_steps(self, p: AttackEvalParams) -> int:
        """Of one run of it on an image."""
        return self.steps if isinstance(self.steps, int) else getattr(p, self.steps)

    @property
    def summary(self) -> str:
        """What it does: its docstring."""
        return " ".join((self.run.__doc__ or "").split())


def attack(
    label: str,
    kind: Kind,
    steps: int | str = 0,
    starts_from: Literal["image", "smaller eps", "survivors"] = "image",
) -> Callable[[AttackFunction], Attack]:
    """Make an `Attack` of a function; its name is the function's."""

    def record(run: AttackFunction) -> Attack:
        name = getattr(run, "__name__", label)
        return Attack(name, label, kind, run, steps, starts_from)

    return record
