"""The attacks of AutoAttack (Croce and Hein, arXiv:2003.01690), by way of the library pyautoattack.

Its own ``standard`` list needs more classes: targeted DLR's denominator has the fourth logit, FAB-T
asks for nine targets; with three classes it stops with an IndexError. Below four classes the list
here is another one, so its name tells the number of classes: ``aa-k3``. It must not be called
AutoAttack.

The library draws random numbers for a whole batch from the global generators. Here APGD starts from
the noise that belongs to an image, Square tries the same squares on every image and FAB-T draws
nothing, so that no result depends on the batch; the global generators are put back. Gradients are
computed in float32: FAB-T ends so close to the decision boundary that lower precision would lose
its results. Square's queries are answered in whatever precision is fast.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from stages.attacks.apgd import SAMPLE
from stages.attacks.attack import Attack, Noise, attack
from stages.attacks.gradient import is_adversarial, margin_loss
from stages.core.norms import Budget
from stages.core.params import AttackEvalParams
from stages.models.inference import attached_logits, frozen_eval_mode

MAX_TARGETS = 9  # classes that targeted attacks aim at, as in AutoAttack
LOGGER = logging.getLogger("pyautoattack")
LOGGER.setLevel(logging.ERROR)  # it warns of zero gradients, which are diagnostic D5


def full_ensemble(classes: int) -> tuple[Attack, ...]:
    """AutoAttack's attacks that are defined for so many classes, from cheap to expensive.

    K >= 4: the standard list: APGD-CE, targeted APGD-DLR, FAB-T, Square. K = 3: APGD-CE, untargeted
    APGD-DLR, APGD on the margin z_t - z_y of each target class t, FAB-T, Square. K = 2: the same
    without DLR, which divides by the third logit.
    """
    if classes >= 4:
        return apgd_ce, apgd_t, fab_t, square
    return apgd_ce, *([apgd_dlr] if classes == 3 else []), apgd_margin, fab_t, square


@contextmanager
def _frozen_eval(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Frozen model in eval mode, global generators put back afterwards."""
    devices = [x.device] if x.device.type == "cuda" else []
    with frozen_eval_mode(model), torch.random.fork_rng(devices):
        yield


@contextmanager
def _float32(model: nn.Module, x: Tensor) -> Iterator[None]:
    """`_frozen_eval` without autocast."""
    with _frozen_eval(model, x), torch.autocast(x.device.type, enabled=False):
        yield


class _Attached(nn.Module):
    """A model that the library can differentiate: see `attached_logits`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return attached_logits(self.model, x)


def _targets(model: nn.Module, x: Tensor) -> int:
    """How many other classes targeted attacks aim at."""
    with torch.no_grad():
        return min(MAX_TARGETS, model(x[:1]).shape[1] - 1)


def _library_norm(budget: Budget) -> str:
    return budget.norm.name.capitalize()  # Linf, L2


class _MarginAPGD(APGDAttack_targeted):
    """APGD on the difference of two logits, z_t - z_y: unlike DLR it needs two classes only."""

    def ce_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.gather(1, self.y_target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def _library_apgd(name: str, label: str, kind: type[APGDAttack], loss: str) -> Attack:
    """The library's APGD, aimed at one class after the other where ``kind`` is targeted."""
    targeted = issubclass(kind, APGDAttack_targeted)

    def run(
        model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
    ) -> Tensor:
        """Auto-PGD (arXiv:2003.01690), `aa_steps` iterations."""
        apgd = kind(
            _Attached(model),
            n_iter=p.aa_steps,
            norm=_library_norm(budget),
            eps=budget.eps,
            device=x.device,
            logger=LOGGER,
        )
        apgd.loss = loss
        x = x.contiguous()  # the library takes views that channels-last memory doesn't allow
        apgd.init_hyperparam(x)
        sample = noise(budget.norm.noise, SAMPLE).contiguous()
        start = x + budget.eps * apgd.normalize(sample)
        x_adv = x.clone()
        with _float32(model, x):
            for rank in range(2, 2 + (_targets(model, x) if targeted else 1)):
                with torch.no_grad():
                    logits = model(x_adv)
                active = (logits.argmax(1) == y).nonzero().squeeze(1)
                if not len(active):
                    break
                # Of the logits, the label's is the largest.
                apgd.y_target = logits[active].argsort(1)[:, -rank] if targeted else None
                _, correct, _, candidate = apgd.attack_single_run(
                    x[active], y[active], start[active]
                )
                successful = (correct == 0).nonzero().squeeze(1)
                x_adv[active[successful]] = candidate[successful]
        return x_adv.detach()

    return Attack(name, label, "ensemble", run, "aa_steps", "survivors")


apgd_ce = _library_apgd("apgd_ce", "APGD-CE", APGDAttack, "ce")
apgd_dlr = _library_apgd("apgd_dlr", "APGD-DLR", APGDAttack, "dlr")
apgd_t = _library_apgd("apgd_t", "APGD-T", APGDAttack_targeted, "dlr-targeted")
apgd_margin = _library_apgd("apgd_margin", "APGD-margin", _MarginAPGD, "ce-targeted")


@attack("FAB-T", "ensemble", steps="aa_steps", starts_from="survivors")
def fab_t(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """Targeted fast adaptive boundary attack (arXiv:1907.02044)."""
    with _float32(model, x):
        targets = _targets(model, x)
    fab = FABAttack_PT(
        _Attached(model),
        norm=_library_norm(budget),
        n_restarts=1,
        n_iter=p.aa_steps,
        eps=budget.eps,
        targeted=True,
        device=x.device,
        n_target_classes=targets,
    )
    with _float32(model, x):
        return fab.perturb(x.contiguous(), y).detach()


class _BatchInvariantSquare(SquareAttack):
    """Square that gives every image of a batch the same random signs, as it does the squares.

    They come from a generator of its own: several threads may attack at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generator = torch.Generator().manual_seed(self.seed)

    def random_choice(self, shape: list[int]) -> Tensor:
        one = shape if len(shape) < 4 else [1, *shape[1:]]
        signs = (2 * torch.rand(one, generator=self.generator) - 1).sign()
        return signs.to(self.device, non_blocking=True).expand(*shape)

    def random_int(self, low: int, high: int) -> int:
        """Where a square begins. The library's is on the device, which each slice waits for."""
        return int(low + (high - low) * torch.rand(1, generator=self.generator))

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A margin of 0 is a success, as in the search; its start forgets that, and may fail."""
        margin, loss = super().margin_and_loss(x, y)
        return margin.masked_fill(margin == 0, -1e-12), loss


@attack("Square", "ensemble", starts_from="survivors")
def square(
    model: nn.Module, x: Tensor, y: Tensor, budget: Budget, noise: Noise, p: AttackEvalParams
) -> Tensor:
    """A random search without gradients, `aa_queries` queries (arXiv:1912.00049)."""
    search = _BatchInvariantSquare(
        model,
        norm=_library_norm(budget),
        n_queries=p.aa_queries,
        eps=budget.eps,
        p_init=0.8,
        seed=noise.seed,
        resc_schedule=False,
        device=x.device,
    )
    x = x.contiguous()
    with _frozen_eval(model, x), torch.no_grad():
        x_adv = search.perturb(x, y)
        if torch.is_autocast_enabled(x.device.type):
            # What float32 doesn't confirm is searched for again.
            missed = (margin_loss(model(x_adv), y) >= 0) & ~is_adversarial(model, x_adv, y)
            missed = missed.nonzero().squeeze(1)
            if len(missed):
                with torch.autocast(x.device.type, enabled=False):
                    x_adv[missed] = search.perturb(x[missed], y[missed])
        return x_adv
