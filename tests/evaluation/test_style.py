"""PNG bytes depend on the numbers alone and stay small."""

import io

import numpy as np
import pytest
from PIL import Image
from stages.evaluation.style import MAX_PNG_BYTES, encode_png, make_figure, render_png, truncate


def figure_of(pixels: np.ndarray):
    figure, axes = make_figure(3, 3, 1, 1)
    axes[0, 0].imshow(pixels)
    return figure


def test_png_is_repeatable_and_has_no_metadata():
    first, second = (render_png(figure_of(np.eye(8)), "note") for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    with Image.open(io.BytesIO(first)) as image:
        assert not image.info
    assert render_png(figure_of(np.eye(8)), "another note") != first


def test_true_color_is_kept_unless_the_file_gets_too_large():
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    small, large = render_png(figure_of(np.eye(8))), render_png(figure_of(noise))
    modes = [Image.open(io.BytesIO(png)).mode for png in (small, large)]
    assert modes == ["RGB", "P"]
    assert len(large) < MAX_PNG_BYTES


def test_encoded_image_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(Image.fromarray(pixels))))) == pixels).all()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Type 1", "Type 1"), ("a" * 18, "a" * 18), ("a" * 19, "a" * 17 + "…"), ("$x$", r"\$x\$")],
)
def test_long_names_are_truncated_and_dollar_signs_escaped(text, shown):
    assert truncate(text) == shown
