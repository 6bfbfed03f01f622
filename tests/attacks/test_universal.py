"""Universal perturbations: the closed form of a linear model."""

import pytest
import torch

from stages.attacks.universal import universal_perturbation
from stages.core.norms import NORMS, Budget
from tests.helpers.models import LinearLogits

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
