"""The figures that show images: small, repeatable, and the amplified perturbation is what it says."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from stages.evaluation import image_figures, style
from stages.evaluation.image_figures import adversarial_examples, amplify, class_examples

from stages.core.predictions import read_examples
from tests.helpers.prediction_tables import make_examples

IMAGES = {
    "a $ sign": np.zeros((0, 8, 8, 3), np.uint8),
    "Type_1": np.full((2, 8, 8, 3), 99, np.uint8),
}


@pytest.fixture
def examples(tmp_path):
    """(table, folder) of three adversarial examples."""
    make_examples(tmp_path, size=32)
    return read_examples(tmp_path), tmp_path


def test_class_examples_are_repeatable_small_and_without_metadata():
    png = class_examples(IMAGES, synthetic=True)
    assert png == class_examples(IMAGES, synthetic=True)
    assert png.startswith(b"\x89PNG")
    assert b"Software" not in png
    assert len(png) < style.MAX_PNG_BYTES


def test_class_examples_keep_a_row_for_classes_without_images(rendered):
    class_examples(IMAGES, synthetic=True)
    assert len(rendered[0].axes) == 4
    assert sum(bool(axis.images) for axis in rendered[0].axes) == 2
    assert {r"a \$ sign", "Type 1"} <= set(rendered[0].texts)


def test_synthetic_images_are_named_and_real_ones_are_not(rendered, examples):
    for synthetic in (True, False):
        class_examples(IMAGES, synthetic=synthetic)
        adversarial_examples(*examples, 10, "linf", synthetic=synthetic)
    assert ["synthetic" in drawn.note for drawn in rendered] == [True, True, False, False]


def test_adversarial_examples_are_repeatable_and_small(examples):
    png = adversarial_examples(*examples, 10, "linf", synthetic=True)
    assert png == adversarial_examples(*examples, 10, "linf", synthetic=True)
    assert len(png) < style.MAX_PNG_BYTES


@pytest.mark.parametrize(("norm", "budget"), [("linf", "L∞, ε = 8/255"), ("l2", "L2, ε = 0.03137")])
def test_adversarial_examples_name_attack_predictions_and_amplification(
    rendered, examples, norm, budget
):
    adversarial_examples(*examples, 10, norm, synthetic=True)
    assert f"PGD-10, {budget}" in rendered[0].note
    assert {
        *image_figures.HEADS,
        "✓ Type 1 (0.83)",
        "✗ Type 2 (0.97)",
        "Label: Type 1",
        "× 15",
    } <= set(rendered[0].texts)
    assert len([axis for axis in rendered[0].axes if axis.images]) == 9


def test_fewer_examples_are_shown_where_the_file_would_get_too_large(
    rendered, examples, monkeypatch
):
    single_row = len(
        adversarial_examples(examples[0].head(1), examples[1], 10, "linf", synthetic=True)
    )
    monkeypatch.setattr(image_figures, "MAX_PNG_BYTES", single_row + 1)
    png = adversarial_examples(*examples, 10, "linf", synthetic=True)
    assert len(png) == single_row
    assert len([axis for axis in rendered[-1].axes if axis.images]) == 3


def test_model_without_correct_images_has_no_example(rendered, examples):
    png = adversarial_examples(examples[0].head(0), examples[1], 10, "linf", synthetic=True)
    Image.open(io.BytesIO(png)).verify()
    assert "No example: the model classifies no image correctly." in rendered[0].texts


def test_amplified_perturbation_fills_the_range():
    original = np.full((4, 4, 3), 100, np.uint8)
    adversarial = original.copy()
    adversarial[0, 0], adversarial[1, 1] = 108, 92
    shown, factor = amplify(original, adversarial)
    assert factor == 15
    assert (shown[0, 0], shown[1, 1], shown[2, 2]) == (
        pytest.approx(248),
        pytest.approx(8),
        pytest.approx(128),
    )


def test_no_perturbation_is_mid_gray():
    original = np.full((4, 4, 3), 100, np.uint8)
    shown, factor = amplify(original, original)
    assert factor == 127
    assert (shown == 128).all()


def test_all_examples_that_were_asked_for_are_shown(rendered, examples):
    table = pd.concat([examples[0]] * 2, ignore_index=True)
    adversarial_examples(table, examples[1], 10, "linf", synthetic=True)
    assert len([axis for axis in rendered[-1].axes if axis.images]) == 3 * len(table) == 18
