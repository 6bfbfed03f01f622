"""The parts of AutoAttack (Croce and Hein, arXiv:2003.01690) for any number of classes, by way of the library pyautoattack.

Its own ``standard`` list needs ten classes: targeted DLR divides by the fourth logit, FAB-T asks for nine wrong classes; with
three it stops with an IndexError. Below four classes the list here is another one, so its name says how many: ``aa-k3``. It is
not to be called AutoAttack.

The library draws a whole batch from the global generators. Here APGD starts from the noise that belongs to an image, Square
tries the same squares on every image and FAB-T draws nothing, so that no result depends on the batch; the global generators
are put back. Everything runs in float32: FAB-T and Square end so close to the boundary that a coarser answer would lose them.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from stages.core.params import AttackEval
from stages.models.inference import frozen_eval_mode

NORMS = {"linf": "Linf", "l2": "L2"}
APGD_DRAW = 1_000_000  # a draw of the images' noise that no other attack starts from
LOG = logging.getLogger("pyautoattack")
LOG.setLevel(logging.ERROR)  # its warnings about zero gradients are D5, with a threshold

Part = Callable[[nn.Module, Tensor, Tensor, float, Callable[[str, int], Tensor]], Tensor]


def ensemble_name(classes: int) -> str:
    """``aa-k3`` for three classes."""
    return f"aa-k{classes}"


def parts(classes: int, *, steps: int, queries: int, norm: str, seed: int) -> dict[str, Part]:
    """The attacks of the ensemble by name, from cheap to dear; each is an attack as in attacks.py.

    K >= 4: the standard list (APGD-CE, targeted APGD-DLR, FAB-T, Square) against the min(9, K - 1) likeliest wrong classes.
    K = 3: APGD-CE, untargeted APGD-DLR, APGD on the margin z_t - z_y of each wrong class t, FAB-T, Square.
    K = 2: the same without DLR, which divides by the third logit.
    """
    targets = min(9, classes - 1)
    gradient = {"steps": steps, "norm": norm}
    named: dict[str, Part] = {"apgd_ce": partial(_apgd, loss="ce", targets=0, **gradient)}
    if classes >= 4:
        named["apgd_t"] = partial(_apgd, loss="dlr-targeted", targets=targets, **gradient)
    else:
        if classes == 3:
            named["apgd_dlr"] = partial(_apgd, loss="dlr", targets=0, **gradient)
        named["apgd_margin"] = partial(_apgd, loss="margin-targeted", targets=targets, **gradient)
    named["fab_t"] = partial(_fab, targets=targets, **gradient)
    named["square"] = partial(_square, queries=queries, norm=norm, seed=seed)
    return named


def record(classes: int, images: int, p: AttackEval, seed: int) -> dict[str, Any]:
    """ensemble.json: what the ensemble consisted of, to stand beside its number."""
    return {
        "name": ensemble_name(classes),
        "attacks": list(parts(classes, steps=p.aa_steps, queries=p.aa_queries, norm="linf", seed=seed)),
        "iterations": p.aa_steps,
        "restarts": 1,
        "queries": p.aa_queries,
        "wrong_classes": min(9, classes - 1),
        "images": images,
        "seed": seed,
        "library": f"pyautoattack {version('pyautoattack')}",
    }


@contextmanager
def _prepared(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Frozen model in eval mode, full precision, global generators put back afterwards."""
    devices = [x.device] if x.device.type == "cuda" else []
    with frozen_eval_mode(model), torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices):
        yield


class _MarginApgd(APGDAttack_targeted):
    """APGD on the difference of two logits, z_t - z_y: unlike DLR it isn't divided by others, and needs two classes only."""

    def ce_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.gather(1, self.y_target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def _apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: Callable[[str, int], Tensor],
    *,
    loss: str,
    targets: int,
    steps: int,
    norm: str,
) -> Tensor:
    kind = {"dlr-targeted": APGDAttack_targeted, "margin-targeted": _MarginApgd}.get(loss, APGDAttack)
    attack = kind(model, n_iter=steps, norm=NORMS[norm], eps=eps, device=x.device, logger=LOG)
    attack.loss = "ce-targeted" if loss == "margin-targeted" else loss  # the library's name of the loss that is replaced
    x = x.contiguous()  # the library takes views that channels-last memory doesn't allow
    attack.init_hyperparam(x)
    draw = noise("uniform" if norm == "linf" else "gaussian", APGD_DRAW).contiguous()
    start = x + eps * attack.normalize(draw)
    found = x.clone()
    with _prepared(model, x):
        for rank in range(2, targets + 2) if targets else [0]:
            with torch.no_grad():
                logits = model(found)
            todo = (logits.argmax(1) == y).nonzero().squeeze(1)
            if not len(todo):
                break
            attack.y_target = logits[todo].argsort(1)[:, -rank] if targets else None
            _, right, _, tried = attack.attack_single_run(x[todo], y[todo], start[todo])
            broken = right == 0
            found[todo[broken]] = tried[broken]
    return found.detach()


def _fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: Callable[[str, int], Tensor],
    *,
    targets: int,
    steps: int,
    norm: str,
) -> Tensor:
    attack = FABAttack_PT(
        model, norm=NORMS[norm], n_restarts=1, n_iter=steps, eps=eps, targeted=True, device=x.device, n_target_classes=targets
    )
    with _prepared(model, x):
        return attack.perturb(x.contiguous(), y).detach()


class _SameSquares(SquareAttack):
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
    noise: Callable[[str, int], Tensor],
    *,
    queries: int,
    norm: str,
    seed: int,
) -> Tensor:
    attack = _SameSquares(
        model, norm=NORMS[norm], n_queries=queries, eps=eps, p_init=0.8, seed=seed, resc_schedule=False, device=x.device
    )
    with _prepared(model, x), torch.no_grad():
        return attack.perturb(x.contiguous(), y).detach()
