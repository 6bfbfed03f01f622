"""The attacks of AutoAttack (Croce and Hein, arXiv:2003.01690) for any number of classes, by way of the library pyautoattack.

Its own ``standard`` list needs more classes: targeted DLR's denominator has the fourth logit, FAB-T asks for nine targets; with
three classes it stops with an IndexError. Below four classes the list here is another one, so its name tells the number of
classes: ``aa-k3``. It must not be called AutoAttack.

The library draws random numbers for a whole batch from the global generators. Here APGD starts from the noise that belongs to
an image, Square tries the same squares on every image and FAB-T draws nothing, so that no result depends on the batch; the
global generators are put back. All run in float32: FAB-T and Square end so close to the decision boundary that lower precision
would lose their results.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from stages.attacks.suite import APGD_SAMPLE, Attack, NoiseSampler
from stages.models.inference import frozen_eval_mode

NORMS = {"linf": "Linf", "l2": "L2"}
LOGGER = logging.getLogger("pyautoattack")
LOGGER.setLevel(
    logging.ERROR
)  # its warnings about zero gradients are diagnostic D5, with a threshold


def ensemble_name(classes: int) -> str:
    """``aa-k3`` for three classes."""
    return f"aa-k{classes}"


def target_classes(classes: int) -> int:
    """How many of the other classes targeted attacks aim at: the likeliest nine at most, as in AutoAttack."""
    return min(9, classes - 1)


def ensemble_attacks(
    classes: int, *, steps: int, queries: int, norm: str, seed: int
) -> dict[str, Attack]:
    """The attacks of the ensemble by name, from cheap to expensive.

    K >= 4: the standard list: APGD-CE, targeted APGD-DLR, FAB-T, Square.
    K = 3: APGD-CE, untargeted APGD-DLR, APGD on the margin z_t - z_y of each target class t, FAB-T, Square.
    K = 2: the same without DLR, which divides by the third logit.
    """
    targets = target_classes(classes)
    apgd = partial(_apgd, steps=steps, norm=norm)
    attacks: dict[str, Attack] = {"apgd_ce": partial(apgd, loss="ce", targets=0)}
    if classes >= 4:
        attacks["apgd_t"] = partial(apgd, loss="dlr-targeted", targets=targets)
    else:
        if classes == 3:
            attacks["apgd_dlr"] = partial(apgd, loss="dlr", targets=0)
        attacks["apgd_margin"] = partial(apgd, loss="margin-targeted", targets=targets)
    attacks["fab_t"] = partial(_fab, targets=targets, steps=steps, norm=norm)
    attacks["square"] = square_attack(queries=queries, norm=norm, seed=seed)
    return attacks


def square_attack(*, queries: int, norm: str, seed: int) -> Attack:
    """Square (Andriushchenko et al., arXiv:1912.00049), a random search without gradients."""
    return partial(_square, queries=queries, norm=norm, seed=seed)


@contextmanager
def _frozen_eval(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Frozen model in eval mode and float32, global generators put back afterwards."""
    kind = x.device.type
    with (
        frozen_eval_mode(model),
        torch.autocast(kind, enabled=False),
        torch.random.fork_rng([x.device] * (kind == "cuda")),
    ):
        yield


class _MarginAPGD(APGDAttack_targeted):
    """APGD on the difference of two logits, z_t - z_y: unlike DLR it isn't divided by others, and needs two classes only."""

    def ce_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.gather(1, self.y_target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def _apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    loss: str,
    targets: int,
    steps: int,
    norm: str,
) -> Tensor:
    kind = {"dlr-targeted": APGDAttack_targeted, "margin-targeted": _MarginAPGD}.get(
        loss, APGDAttack
    )
    attack = kind(model, n_iter=steps, norm=NORMS[norm], eps=eps, device=x.device, logger=LOGGER)
    attack.loss = (
        "ce-targeted" if loss == "margin-targeted" else loss
    )  # the library's name of the loss that is replaced
    x = x.contiguous()  # the library takes views that channels-last memory doesn't allow
    attack.init_hyperparam(x)
    sample = noise("uniform" if norm == "linf" else "gaussian", APGD_SAMPLE).contiguous()
    start = x + eps * attack.normalize(sample)
    x_adv = x.clone()
    with _frozen_eval(model, x):
        for rank in range(2, targets + 2) if targets else [0]:
            with torch.no_grad():
                logits = model(x_adv)
            active = (logits.argmax(1) == y).nonzero().squeeze(1)
            if not len(active):
                break
            attack.y_target = logits[active].argsort(1)[:, -rank] if targets else None
            _, correct, _, candidate = attack.attack_single_run(x[active], y[active], start[active])
            successful = correct == 0
            x_adv[active[successful]] = candidate[successful]
    return x_adv.detach()


def _fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    targets: int,
    steps: int,
    norm: str,
) -> Tensor:
    attack = FABAttack_PT(
        model,
        norm=NORMS[norm],
        n_restarts=1,
        n_iter=steps,
        eps=eps,
        targeted=True,
        device=x.device,
        n_target_classes=targets,
    )
    with _frozen_eval(model, x):
        return attack.perturb(x.contiguous(), y).detach()


class _BatchInvariantSquare(SquareAttack):
    """Square that gives every image of a batch the same random signs, as it does with the squares: images stay independent."""

    def random_choice(self, shape: list[int]) -> Tensor:
        if len(shape) < 4:
            return super().random_choice(shape)
        return super().random_choice([1, *shape[1:]]).expand(*shape)


def _square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: NoiseSampler,
    *,
    queries: int,
    norm: str,
    seed: int,
) -> Tensor:
    attack = _BatchInvariantSquare(
        model,
        norm=NORMS[norm],
        n_queries=queries,
        eps=eps,
        p_init=0.8,
        seed=seed,
        resc_schedule=False,
        device=x.device,
    )
    with _frozen_eval(model, x), torch.no_grad():
        return attack.perturb(x.contiguous(), y).detach()
