"""Norms: what every attack relies on, for each of them."""

import pytest
import torch

from stages.core.norms import NORMS, Budget

EPS = {"linf": 0.1, "l2": 0.7}
FAR = 3.0  # perturbations of this size leave every ball, and [0, 1]


@pytest.fixture(params=NORMS)
def budget(request) -> Budget:
    return Budget.of(request.param, EPS[request.param])


@pytest.fixture
def x() -> torch.Tensor:
    """(6, 3, 4, 4); half of the images have pixels of 0 and 1 only."""
    x = torch.rand(6, 3, 4, 4)
    x[:3] = x[:3].round()
    return x


def test_projection_gives_an_image_within_the_budget_and_keeps_one_that_is(budget, x):
    projected = budget.project(x, x + FAR * torch.randn_like(x))
    assert 0 <= projected.min() <= projected.max() <= 1
    assert (budget.norm.size(projected - x) <= budget.eps + budget.norm.tolerance(budget.eps)).all()
    inside = (x + 0.9 * (projected - x)).clamp(0, 1)
    assert torch.allclose(budget.project(x, inside), inside, atol=1e-6)


def test_clip_gives_the_nearest_perturbation_in_the_ball(budget, x):
    delta = FAR * torch.randn_like(x)
    clipped = budget.norm.clip(delta, budget.eps)
    assert torch.allclose(budget.norm.size(clipped), torch.tensor(budget.eps), rtol=1e-5)
    for other in torch.randn(20, *x.shape):
        other = budget.norm.clip(other, budget.eps)
        assert ((other - delta).square().sum() >= (clipped - delta).square().sum()).all()


def test_no_step_of_norm_1_ascends_faster(budget, x):
    gradient = torch.randn_like(x)
    step = budget.norm.steepest_ascent(gradient)
    assert torch.allclose(budget.norm.size(step), torch.ones(len(x)))
    for other in torch.randn(20, *x.shape):
        other = budget.norm.clip(FAR * other, 1.0)
        assert ((gradient * step).flatten(1).sum(1) >= (gradient * other).flatten(1).sum(1)).all()


@pytest.mark.parametrize("noise", [torch.rand(6, 3, 4, 4) * 2 - 1, torch.randn(6, 3, 4, 4)])
def test_noise_leads_to_a_start_within_the_budget(budget, x, noise):
    tolerance = budget.norm.tolerance(1.0)
    assert (budget.norm.size(budget.norm.unit_noise(noise)) <= 1 + tolerance).all()
    start = budget.random_start(x, noise)
    assert torch.allclose(budget.project(x, start), start, atol=1e-6)
    assert (start - x).flatten(1).abs().amax(1).gt(0).all()


def test_eps_may_differ_between_images(budget, x):
    x_adv, eps = torch.rand_like(x), budget.eps * torch.linspace(0.1, 2, len(x))
    together = budget.with_eps(eps[:, None, None, None])
    projected = together.project(x, x_adv)
    for i in range(len(x)):
        alone = budget.with_eps(eps[i].item()).project(x[i : i + 1], x_adv[i : i + 1])
        assert torch.allclose(projected[i], alone[0])


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [
        ("linf", 8 / 255, "8/255"),
        ("linf", 0.000980392, "0.25/255"),
        ("linf", 0.031373, "8/255"),  # as a table keeps it
        ("linf", 0.01, "0.01"),
        ("linf", 0.0002451, "0.063/255"),
        ("linf", 0.0, "0"),
        ("l2", 128 / 255, "0.502"),
    ],
)
def test_eps_reads_as_it_was_written(norm, eps, text):
    budget = Budget.of(norm, eps)
    assert str(budget) == f"{budget.norm.symbol}, ε = {text}"
    assert budget.short.endswith(text)


def test_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="norm: expected one of linf, l2, got 'L2'"):
        Budget.of("L2", 0.5)
