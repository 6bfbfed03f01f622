"""How often attacks would wait for a GPU: bounds on the operations whose result Python needs."""

import numpy as np
import pytest
import torch

from stages.attacks import gradient
from stages.attacks.apgd import apgd
from stages.attacks.attack import Noise
from stages.attacks.autoattack import square
from stages.attacks.gradient import is_adversarial
from stages.attacks.random_noise import uniform_noise
from stages.attacks.universal import universal_perturbation
from stages.attacks.white_box import bim, fgsm, pgd
from stages.core.norms import NORMS, Budget
from stages.measurements.minimum_eps import bisect
from tests.helpers.measuring import make_context
from tests.helpers.models import smooth_problem
from tests.helpers.params import params
from tests.helpers.waits import WaitCounter

STEPS, REPEATS = 20, 3
EPS = {"linf": 0.05, "l2": 0.36}  # attacks succeed on some images of smooth_problem, not on all
TINY = {"linf": 1e-5, "l2": 1e-4}  # on none


def test_what_is_a_wait():
    x, mask, rows = torch.rand(9), torch.arange(9) > 4, torch.arange(3)
    for waiting in (
        lambda: bool(mask.any()),
        lambda: x.sum().item(),
        lambda: mask.nonzero(),
        lambda: x[mask],
        lambda: x.index_put_((mask,), torch.rand(4)),
    ):
        with WaitCounter() as counter:
            waiting()
        assert counter.count == 1
    with WaitCounter() as counter:
        torch.where(mask, x[rows].sum(), x)
    assert counter.count == 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "eps", "bound"),
    [
        (fgsm, EPS, 0),
        (bim, EPS, STEPS),  # once a step: which images are left
        (pgd, TINY, REPEATS * (STEPS + 1)),
        (uniform_noise, TINY, REPEATS),
        # Two parts of the images one after the other, each with a run for both losses.
        (apgd, TINY, 2 * (STEPS + 1)),
        # Twice at a step that finds something, which has to be confirmed.
        (apgd, EPS, 4 * (STEPS + 1)),
        # The library's search, in L2; half of them are random numbers drawn on the CPU.
        (square, TINY, 12 * STEPS),
    ],
)
def test_waits_of_an_attack(attack, eps, bound, norm):
    model, x, y = smooth_problem(2)
    repeats = dict.fromkeys(("pgd_restarts", "noise_draws"), REPEATS)
    steps = dict.fromkeys(("bim_steps", "pgd_steps", "aa_steps", "aa_queries"), STEPS)
    p = params().attack_eval.model_copy(update=repeats | steps)
    with WaitCounter() as counter:
        noise = Noise(0, np.arange(len(x)), x)
        x_adv = attack.run(model, x, y, Budget.of(norm, eps[norm]), noise, p)
    assert counter.count <= bound
    assert is_adversarial(model, x_adv, y).any() == (eps is EPS)


@pytest.mark.parametrize("norm", NORMS)
def test_loops_that_drop_no_image_never_wait(norm, trained, fabric):
    model, x, y = smooth_problem(3)
    target = make_context(fabric, trained[0], {"clean": trained[1]}).target
    batch = target.load(target.everything)
    brackets = torch.tensor([[0, torch.inf]]).expand(len(batch.x), 2)
    budget, noise = Budget.of(norm, EPS[norm]), torch.rand_like(x)
    with WaitCounter() as counter:
        gradient.pgd(model, x, y, budget, noise, alpha=0.1, steps=STEPS)
        universal_perturbation(model, lambda i: (x[i], y[i]), len(x), budget, seed=0)
        bisect(target, batch, budget, brackets, limit=1.0, rounds=3, steps=4)
    assert counter.count == 0
