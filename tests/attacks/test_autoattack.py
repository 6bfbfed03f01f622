"""The full ensemble is the library's where that one runs."""

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack

from stages.attacks.attack import Noise
from stages.attacks.autoattack import full_ensemble
from stages.attacks.gradient import is_adversarial
from stages.attacks.verifier import check_within_budget
from stages.core.norms import NORMS, Budget
from tests.helpers.models import smooth_problem
from tests.helpers.params import params

EPS = {"linf": 0.012, "l2": 0.09}
P = params(**{"attack_eval.aa_steps": 30, "attack_eval.aa_queries": 100}).attack_eval


class LibraryNoise(Noise):
    """Noise as the library draws it: for a whole batch, from the global generator."""

    def __call__(self, distribution, sample):
        torch.manual_seed(self.seed)
        uniform = distribution == "uniform"
        return 2 * torch.rand_like(self.like) - 1 if uniform else torch.randn_like(self.like)


def noise_of(x: torch.Tensor) -> Noise:
    return LibraryNoise(0, np.arange(len(x)), x)


def library(model, budget: Budget) -> AutoAttack:
    """With fewer steps than usual."""
    oracle = AutoAttack(model, eps=budget.eps, norm=budget.norm.name.title(), seed=0)
    for attack in (oracle.apgd, oracle.apgd_targeted, oracle.fab):
        attack.n_iter = P.aa_steps
    oracle.square.n_queries = P.aa_queries
    return oracle


def test_library_s_standard_attack_fails_for_three_classes():
    """The reason for a list of our own; without it this test fails."""
    model, x, y = smooth_problem(3)
    with pytest.raises(IndexError):
        AutoAttack(model, eps=1e-4, seed=0).run_standard_evaluation(x, y)


@pytest.mark.parametrize("norm", NORMS)
def test_standard_attack_of_the_library_for_ten_classes(norm):
    (model, x, y), budget = smooth_problem(10), Budget.of(norm, EPS[norm])
    expected = library(model, budget).run_standard_evaluation(x, y)[0]
    expected = is_adversarial(model, expected, y)
    found = torch.zeros_like(expected)
    for attack in full_ensemble(10):
        left = ~found
        x_adv = attack.run(model, x[left], y[left], budget, noise_of(x[left]), P)
        check_within_budget(x[left], x_adv, budget)
        found[left] = is_adversarial(model, x_adv, y[left])
    assert 0 < expected.sum() < len(x), "an ε at which all or no attacks succeed tests nothing"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_is_bit_identical_to_the_library_s_from_the_same_start(norm):
    (model, x, y), budget = smooth_problem(10), Budget.of(norm, EPS[norm])
    oracle = AutoAttack(model, eps=budget.eps, norm=norm.title(), seed=0).apgd
    oracle.loss = "ce"
    expected, p = oracle.perturb(x, y), P.model_copy(update={"aa_steps": oracle.n_iter})
    assert (expected != x).any()
    assert torch.equal(full_ensemble(10)[0].run(model, x, y, budget, noise_of(x), p), expected)
