"""The check that trusts no attack."""

import pytest
import torch

from stages.attacks.verifier import BudgetViolationError, check_within_budget
from stages.core.norms import NORMS, Budget

EPS = {"linf": 0.04, "l2": 0.1}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, delta: x[:1], "expected float32"),
        (lambda x, delta: x.double(), "expected float32"),
        (lambda x, delta: x * float("nan"), "expected finite pixels"),
        (lambda x, delta: x + 1, r"expected pixels in \[0, 1\]"),
        (lambda x, delta: x + 1.01 * delta, "expected perturbations within L.*, got one of norm 0"),
    ],
)
def test_what_is_no_image_within_the_budget_is_refused_by_name(norm, change, message):
    x, budget = torch.rand(2, 3, 4, 4) * 0.8 + 0.1, Budget.of(norm, EPS[norm])
    delta = budget.eps * budget.norm.steepest_ascent(torch.randn(x.shape))
    check_within_budget(x, x + delta, budget)
    with pytest.raises(BudgetViolationError, match=f"^pgd: {message}"):
        check_within_budget(x, change(x, delta), budget, "pgd")
