"""Universal perturbations: the closed form of a linear model, and better than chance on others."""

import numpy as np
import pytest
import torch

from stages.attacks.attack import Noise
from stages.attacks.gradient import margin_loss
from stages.attacks.universal import add_perturbation, universal_perturbation
from stages.attacks.verifier import check_within_budget
from stages.core.norms import NORMS, Budget
from stages.models.batches import DatasetSplit
from tests.helpers.models import LinearLogits
from tests.helpers.params import params

EPS = {"linf": 0.05, "l2": 0.6}


def of_linear_model(label: int, budget: Budget) -> tuple[torch.Tensor, torch.Tensor]:
    """The perturbation of 40 images of one label, far inside class 1; the weights."""
    model, x = LinearLogits(torch.randn(3 * 8 * 8), 100.0), torch.rand(40, 3, 8, 8) * 0.6 + 0.2
    y = torch.full((len(x),), label)
    delta = universal_perturbation(model, lambda rows: (x[rows], y[rows]), len(x), budget, seed=0)
    return delta, model.weight.detach().view(3, 8, 8)


@pytest.mark.parametrize("norm", NORMS)
def test_perturbation_of_a_linear_model_is_the_steepest_descent_of_its_logit(norm):
    budget = Budget.of(norm, EPS[norm])
    delta, weight = of_linear_model(1, budget)
    expected = budget.eps * budget.norm.steepest_ascent(-weight[None])[0]
    assert torch.allclose(delta, expected, atol=1e-4)


def test_images_that_are_misclassified_by_far_have_no_influence():
    delta, _ = of_linear_model(0, Budget.of("linf", 0.1))
    assert not delta.any()


@pytest.mark.parametrize("norm", NORMS)
def test_perturbation_of_some_images_is_worse_for_others_than_noise_of_its_size(norm, trained):
    dataset, model = trained
    cpu, budget = torch.device("cpu"), Budget.of(norm, 3 * EPS[norm])
    train, test = (DatasetSplit.from_dataset(dataset, name) for name in ("train", "test"))
    made = universal_perturbation(
        model, lambda rows: train.load(rows, cpu), len(train), budget, seed=0
    )
    x, y = test.load(np.arange(len(test)), cpu)
    noise, margins = Noise(0, test.rows, x), []
    for delta in (torch.zeros_like(made), budget.norm.steepest_ascent(torch.randn(1, *made.shape))):
        attack = add_perturbation(budget.eps * delta.view(made.shape))
        margins.append(attack.run(model, x, y, budget, noise, params().attack_eval))
    attacked = add_perturbation(made).run(model, x, y, budget, noise, params().attack_eval)
    check_within_budget(x, attacked, budget)
    clean, random, universal = (margin_loss(model(z), y).mean() for z in (*margins, attacked))
    assert universal > random + 0.5 > clean
