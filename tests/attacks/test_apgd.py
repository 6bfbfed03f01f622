"""The lean ensemble: the library's APGD step by step, stronger than the full ensemble, precise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack_targeted
from torch import nn

from stages.attacks.apgd import CROSS_ENTROPY, apgd, auto_pgd, target_loss
from stages.attacks.attack import Noise
from stages.attacks.autoattack import full_ensemble
from stages.attacks.gradient import is_adversarial, margin_loss
from stages.core.norms import NORMS, Budget
from stages.models.inference import frozen_eval_mode
from tests.helpers.models import Wrapped, smooth_problem
from tests.helpers.params import params

EPS = {"linf": 0.012, "l2": 0.09}
STEPS = 100


def attack(model: nn.Module, x: torch.Tensor, y: torch.Tensor, budget: Budget, **p) -> torch.Tensor:
    changed = params().attack_eval.model_copy(update=p)
    return apgd.run(model, x, y, budget, Noise(0, np.arange(len(x)), x), changed)


def test_target_loss_is_a_part_of_the_margin_or_the_cross_entropy():
    logits, y = torch.randn(50, 4), torch.arange(50) % 4
    others = (y + torch.arange(1, 4)[:, None]) % 4  # (3, 50)
    margins = torch.stack([target_loss(logits, y, other) for other in others])
    assert torch.equal(margins.amax(0), margin_loss(logits, y))
    cross_entropy = target_loss(logits, y, torch.full_like(y, CROSS_ENTROPY))
    assert torch.equal(cross_entropy, F.cross_entropy(logits, y, reduction="none"))


class LibraryAPGD(APGDAttack_targeted):
    """The library's APGD on our loss.

    At the first step it compares the loss with 0 instead of that of the start; a loss that is
    positive everywhere makes both "larger".
    """

    target = None

    def ce_loss_targeted(self, logits, y):
        return target_loss(logits, y, self.target) + 8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
def test_every_step_is_the_library_s(loss, norm, monkeypatch):
    monkeypatch.setattr("stages.attacks.apgd.target_loss", lambda *args: target_loss(*args) + 8)
    model, x, y = smooth_problem(4)
    budget = Budget.of(norm, 3 * EPS[norm])  # too small for success: an image would leave
    target = (y + 1) % 4 if loss == "margin" else torch.full_like(y, CROSS_ENTROPY)
    start = budget.random_start(x, 2 * torch.rand_like(x) - 1)
    points: list[torch.Tensor] = []
    recorder = Wrapped(model, inputs=lambda x: points.append(x.detach().clone()) or x)
    library = LibraryAPGD(recorder, n_iter=STEPS, norm=norm.title(), eps=budget.eps, device="cpu")
    library.loss, library.target = "ce-targeted", target
    library.init_hyperparam(x)
    library.attack_single_run(x, y, start)
    expected = points.copy()
    points.clear()
    with frozen_eval_mode(model):
        auto_pgd(recorder, x, y, target[None], start, budget, steps=STEPS)
    assert len(points) == len(expected) == STEPS + 1
    for step, (ours, theirs) in enumerate(zip(points, expected, strict=True)):
        assert torch.allclose(ours, theirs, atol=1e-6), step
    moves = [(a - b).abs().max() for a, b in zip(expected[1:], expected, strict=False)]
    assert moves[-1] < moves[1] / 4, "step sizes that were never halved test no checkpoint"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_finds_at_least_what_the_full_ensemble_s_gradient_attacks_find(classes, norm):
    model, x, y = smooth_problem(classes, images=48)
    budget = Budget.of(norm, EPS[norm] * (4 if classes < 4 else 1.5))
    p, noise = params(**{"attack_eval.aa_steps": 50}).attack_eval, Noise(0, np.arange(len(x)), x)
    *gradient_attacks, _square = full_ensemble(classes)
    found = torch.zeros(len(x), dtype=torch.bool)
    for other in gradient_attacks:
        found |= is_adversarial(model, other.run(model, x, y, budget, noise, p), y)
    ours = is_adversarial(model, attack(model, x, y, budget, aa_steps=30, targets=9), y)
    assert 0 < found.sum() < len(x), "an ε at which all or no attacks succeed tests nothing"
    assert ours.sum() >= found.sum() - 1


def test_no_more_runs_at_a_time_than_the_caller_has_memory_for():
    (model, x, y), sizes = smooth_problem(10), []
    recorder = Wrapped(model, inputs=lambda x: sizes.append(len(x)) or x)
    attack(recorder, x, y, Budget.of("linf", 1e-6), targets=3)
    assert max(sizes) == len(x)


def under_autocast(change):
    """Logits in float32, changed where a model would compute them in low precision."""
    return lambda z: change(z.float()) if torch.is_autocast_enabled("cpu") else z


@pytest.mark.parametrize(
    ("logits", "share"),
    [
        # Far too sure that attacks succeed: believed, every image would leave where it starts.
        (under_autocast(lambda z: z - 50 * F.one_hot(z.argmax(1), 3)), 0.9),
        # No gradient: only the steps in float32 make progress.
        (under_autocast(lambda z: z.detach() + 0 * z), 0.5),
    ],
    ids=["optimistic", "blind"],
)
def test_low_precision_decides_nothing(logits, share):
    (model, x, y), budget = smooth_problem(3, images=40), Budget.of("linf", 6 * EPS["linf"])
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = attack(Wrapped(model, logits=logits), x, y, budget, aa_steps=10)
    exact = attack(model, x, y, budget, aa_steps=10)
    exact, found = (int(is_adversarial(model, z, y).sum()) for z in (exact, x_adv))
    assert exact > 10
    assert found > share * exact
