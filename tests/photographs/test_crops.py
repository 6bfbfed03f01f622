"""Which part of an image is kept."""

import numpy as np
import pytest
from PIL import Image
from sklearn.mixture import GaussianMixture

from stages.photographs.crops import _fit_two_component_gmm
from stages.photographs.decoding import decode_image
from tests.helpers.image_files import encode, make_image


def test_square_crop_is_centered():
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste(Image.new("RGB", (64, 64), "blue"), (32, 0))
    content = encode(wide, "PNG")
    square, whole = (decode_image(content, 32, crop) for crop in ("square", "none"))
    assert square.crop_box.left == 0.25
    assert whole.crop_box.is_whole
    assert not square.crop_box.is_whole
    assert (square.pixels[:, 1:-1] == (0, 0, 255)).all()
    assert (whole.pixels[:, 0] == (255, 0, 0)).all()


X, Y = np.meshgrid((np.arange(160) + 0.5) / 160, (np.arange(120) + 0.5) / 120)


def crop_box_of_red_region(region):
    """The crop box of a pale image with a reddish region."""
    pale = np.asarray(make_image(0, 160, 120).convert("L"), float)[..., None] / 8 + (190, 180, 165)
    image = Image.fromarray(
        np.where(region[..., None], pale * (0.9, 0.5, 0.5), pale).astype(np.uint8)
    )
    return decode_image(encode(image), 32, "cervix").crop_box


@pytest.mark.parametrize(
    ("x", "y", "radius"), [(0.45, 0.55, 0.3), (0.4, 0.45, 0.22), (0.55, 0.5, 0.38)]
)
def test_cervix_crop_encloses_red_disc(x, y, radius):
    box = crop_box_of_red_region(np.hypot((X - x) * 160, (Y - y) * 120) < radius * 120)
    assert box.kind == "cervix"
    assert (box.left + box.right) / 2 == pytest.approx(x, abs=0.06)
    assert (box.top + box.bottom) / 2 == pytest.approx(y, abs=0.1)
    assert 2 * radius <= box.bottom - box.top <= 3.2 * radius, "all of the disc and a margin"


def test_cervix_crop_falls_back_to_square_for_oblong_region():
    box = crop_box_of_red_region(abs(Y - 0.5) < 0.06)
    assert (box.left, box.right, box.kind) == (0.125, 0.875, "fallback")


def test_gmm_matches_sklearn():
    rng = np.random.default_rng(0)
    near, far = rng.normal((1, 2), (0.4, 0.6), (900, 2)), rng.normal((2.5, 0), (0.7, 0.3), (600, 2))
    x, y = points = np.concatenate([near, far]).T
    responsibility, first_has_smaller_x = _fit_two_component_gmm(x, y, x < np.median(x))
    assert first_has_smaller_x
    assert ((responsibility > 0.5) == (np.arange(1500) < 900)).mean() > 0.97
    mixture = GaussianMixture(2, means_init=[(1, 2), (2.5, 0)], tol=1e-6, max_iter=200).fit(
        points.T
    )
    assert abs(responsibility - mixture.predict_proba(points.T)[:, 0]).max() < 0.02


def test_gmm_is_finite_for_zero_variance():
    constant = np.ones(50)
    assert np.isfinite(_fit_two_component_gmm(constant, constant, constant > 0)[0]).all()
