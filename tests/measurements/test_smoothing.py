"""Certificates hold: in closed form for a linear model, and against PGD for any."""

import numpy as np
import pytest
import torch
from scipy import stats

from stages.core.tables import check_columns
from stages.measurements import smoothing
from stages.measurements.smoothing import ALPHA, COPIES, SmoothedModel
from tests.helpers.datasets import make_dataset
from tests.helpers.measuring import make_context
from tests.helpers.models import LinearLogits

SIGMA = 0.25


def measure(fabric, dataset, model):
    context = make_context(fabric, dataset, {"clean": model}, **{
        "attack_eval.smoothing_sigma": SIGMA, "attack_eval.curve_steps": 4})  # fmt: skip
    rows = smoothing.run(context)[smoothing.TABLE.name]
    check_columns(rows, list(smoothing.TABLE.columns), "smoothing")
    return context, rows.set_index(["radius", "path"]).sort_index()


@pytest.fixture(scope="module")
def linear(fabric):
    """A linear model of two classes on images at many distances of its boundary."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=3 * 4 * 4).astype(np.float32))
    pixels = rng.integers(90, 166, (320, 4, 4, 3)).astype(np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    model = LinearLogits(weight, -float((x.flatten(1) @ weight).mean())).requires_grad_(False)
    labels = model(x).argmax(1).numpy()
    dataset = make_dataset(pixels, labels, ("a", "b"))
    context, rows = measure(fabric, dataset, model)
    images = context.target.load(context.target.everything)
    return model.distance(images.x, "l2").numpy(), context, rows


def broken(rows):
    return (rows["prediction"] != rows["label"]) & (rows["abstains"] == 0)


def test_certificate_of_a_linear_model_stays_below_its_distance_and_grows_with_it(linear):
    distance, context, rows = linear
    paths = context.images(context.target.everything, "path")["path"]
    certified = rows.loc[0.0].loc[paths, "certified_radius"].to_numpy()
    assert (certified <= distance).all()
    assert (certified > 0).mean() > 0.3
    assert stats.spearmanr(certified, distance).statistic > 0.8


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.4])
def test_certificate_reaches_the_closed_form_with_many_copies(distance):
    copies = 10**5
    votes = np.array([round(copies * stats.norm.cdf(distance / SIGMA))])
    (certified,) = smoothing.certified_radius(votes, copies, SIGMA)
    assert 0.9 * distance < certified < distance


def test_certificate_is_missed_as_rarely_as_promised():
    rng, p = np.random.default_rng(0), 0.8
    votes = rng.binomial(COPIES, p, 200_000)
    too_large = smoothing.certified_radius(votes, COPIES, SIGMA) > SIGMA * stats.norm.ppf(p)
    assert too_large.mean() <= ALPHA
    assert smoothing.certified_radius(np.array([0, COPIES // 2]), COPIES, SIGMA).tolist() == [0, 0]


def test_pgd_breaks_what_a_linear_model_does_not_hold_and_no_more(linear):
    distance, context, rows = linear
    paths = context.images(context.target.everything, "path")["path"]
    for relative in smoothing.RADII:
        radius = relative * SIGMA
        found = broken(rows.loc[radius]).loc[paths].to_numpy()
        assert not found[distance > radius].any()
        assert found[distance < radius - SIGMA / 2].all(), "PGD reaches the boundary"


@pytest.mark.parametrize("network", ["linear", "trained"])
def test_no_certified_image_is_broken_by_pgd(network, request, fabric):
    if network == "linear":
        rows = request.getfixturevalue("linear")[2]
    else:
        rows = measure(fabric, *request.getfixturevalue("trained"))[1]
    certified = rows["certified_radius"]
    for radius in (relative * SIGMA for relative in smoothing.RADII):
        assert not (broken(rows.loc[radius]) & (certified.loc[radius] >= radius)).any()
    assert (certified > 0).any()
    assert broken(rows).any() == (network == "linear"), "the other one withstands such radii"


def test_smoothed_model_is_the_mean_softmax_of_the_copies(small_net, images):
    noise = torch.randn(4, *images[0].shape)
    mean = torch.stack([small_net(images[0] + n).softmax(1) for n in noise]).mean(0)
    assert torch.allclose(SmoothedModel(small_net, noise)(images[0]).exp(), mean, atol=1e-6)


def test_abstains_where_two_classes_are_close():
    votes = np.array([[100, 100, 0], [0, 110, 90], [30, 160, 10], [200, 0, 0]])
    assert smoothing.abstains(votes).tolist() == [True, True, False, False]
