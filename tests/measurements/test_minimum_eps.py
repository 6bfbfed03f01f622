"""The minimum perturbation: the closed form of a linear model, and no more than known."""

import numpy as np
import pytest
import torch

from stages.core.norms import NORMS, UNRECOGNIZABLE
from stages.core.predictions import is_correct
from stages.measurements import minimum_eps
from tests.helpers.datasets import make_dataset
from tests.helpers.measuring import make_context, run_suite
from tests.helpers.models import LinearLogits

VALUES = 3 * 8 * 8  # of an image
# From the mean absolute change of a pixel, all changing alike, to the norm of the perturbation.
SCALE = {"linf": 1.0, "l2": VALUES**0.5}
ROUNDS = {"attack_eval.min_eps_rounds": 12}


def linear_context(fabric, norm: str, eps: float, distance: float):
    """After the suite: gray images, of class 1 but for every fifth, at this distance of class 0."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(122, 135, (40, 8, 8, 3)).astype(np.uint8)
    dataset = make_dataset(pixels, (np.arange(40) % 5 > 0).astype(int), ("a", "b"))
    weight = 0.05 * torch.randn(VALUES).sign()  # small: cross-entropy saturates
    bias = weight.abs().sum() * distance - 0.5 * weight.sum()
    model = LinearLogits(weight, bias.item())
    eps = eps * SCALE[norm]
    threat = {"attack.norm": norm, "attack.eps": eps, "attack.eps_grid": [eps / 2, eps]}
    context = make_context(fabric, dataset, {"clean": model}, **threat, **ROUNDS)
    run_suite(context)
    return context


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("eps", "distance"), [(8 / 255, 0.04), (0.1, 0.04), (0.4, 0.35)])
def test_linear_model_has_its_closed_form_also_where_the_budget_is_large(
    eps, distance, norm, fabric
):
    context = linear_context(fabric, norm, eps, distance)
    rows = minimum_eps.run(context)["minimum_eps"]
    misclassified = (rows["label"] == "a").to_numpy()
    assert 0 < misclassified.sum() < len(rows)
    assert (rows.loc[misclassified, "eps"] == 0).all()
    assert rows["found"].all()
    model, batch = context.target.model, context.target.load(context.subset)
    expected = model.distance(batch.x, norm).numpy()[~misclassified]
    found = rows["eps"].to_numpy()[~misclassified]
    assert (found >= expected * 0.999).all(), "no attack can succeed below the closed form"
    assert np.allclose(found, expected, rtol=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_image_that_no_attack_changes_is_not_found_at_the_largest_eps(norm, fabric):
    context = linear_context(fabric, norm, 0.1, distance=1e6)
    rows = minimum_eps.run(context)["minimum_eps"].query("label == 'b'")
    assert (rows["found"] == 0).all()
    assert rows["eps"].to_numpy() == pytest.approx(UNRECOGNIZABLE * SCALE[norm])


def test_no_larger_than_what_the_attacks_found(fabric, trained):
    dataset, model = trained
    few = {"attack.eps": 0.07, "attack_eval.min_eps_rounds": 1, "attack_eval.curve_steps": 1}
    context = make_context(fabric, dataset, {"clean": model}, **few)
    rows = run_suite(context)
    known = rows[~is_correct(rows)].groupby("path")["linf"].min()
    found = minimum_eps.run(context)["minimum_eps"].set_index("path").loc[known.index, "eps"]
    assert 0 < len(known) < 24
    assert (found <= known + 1e-7).all()
    assert (found < known).any()
