"""Attacks on prediction sets: the closed form of a linear model, and what a set can hold."""

import numpy as np
import pytest
import torch

from stages.attacks.attack import Noise
from stages.attacks.prediction_sets import enlarge_set, exclude_label, missing_classes
from stages.core.norms import NORMS, Budget
from tests.helpers.models import LinearLogits
from tests.helpers.params import params

P, STEPS = params().attack_eval, 20
EPS = {"linf": 0.02, "l2": 0.3}


def attacked(attack, model, x, y, norm):
    budget = Budget.of(norm, EPS[norm])
    x_adv = attack.run(model, x, y, budget, Noise(0, np.arange(len(x)), x), P)
    assert (budget.norm.size(x_adv - x) <= budget.eps + budget.norm.tolerance(budget.eps)).all()
    return model(x_adv).detach()


@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_has_its_closed_form(norm):
    torch.manual_seed(0)
    weight, y = torch.randn(108), torch.arange(40) % 2
    x = 0.5 + torch.linspace(-0.1, 0.1, 40)[:, None] * weight.sign()  # (B, 108)
    x = x.view(40, 3, 6, 6)
    model = LinearLogits(weight, -0.5 * weight.sum().item())
    reach = EPS[norm] * model.weight.norm(p={"linf": 1, "l2": 2}[norm]).item()
    clean = model(x)[:, 1].detach()
    logits = attacked(exclude_label(STEPS), model, x, y, norm)[:, 1]
    assert torch.allclose(logits, clean + reach * (1 - 2 * y), atol=0.03 * reach)
    threshold = 0.7  # both classes are in a set where the logit is within log(0.7 / 0.3) of 0
    missing = missing_classes(attacked(enlarge_set(threshold, STEPS), model, x, y, norm), threshold)
    too_far = clean.abs() - reach - np.log(0.7 / 0.3)
    assert (too_far < -0.1).sum() > 5
    assert (too_far > 0.1).sum() > 5
    assert (missing[too_far < -0.1] == 0).all()
    assert (missing[too_far > 0.1] > 0).all()


def test_what_is_missing_is_of_as_many_classes_as_a_set_can_hold():
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.45, 0.35, 0.2]]).log()
    for threshold, possible in ((0.45, 1), (0.55, 2), (0.9, 3), (1.0, 3)):
        lacks = (np.log(max(1 - threshold, 1e-30)) - logits[:, :possible]).clamp_min(0).sum(1)
        assert missing_classes(logits, threshold).tolist() == pytest.approx(lacks.tolist())
    assert missing_classes(logits, 0.9).tolist() == [0, 0], "all are in the set"
