"""Decoding: formats and color modes, orientation, accuracy of the reduced decoding, invalid and damaged files."""

import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from stages.photographs import decoding
from stages.photographs.decoding import (
    EXIF_TRANSPOSE,
    MAX_PIXELS,
    ImageDecodeError,
    decode_and_orient,
    decode_image,
)
from tests.helpers.image_files import REASONS, encode, make_chunk, make_image, make_png


def pixels(content: bytes, size: int = 32, crop: str = "none") -> np.ndarray:
    return decode_image(content, size, crop, usable_part=1).pixels.astype(int)


def rejection_reason(content: bytes, usable_part: float = 1) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(content, 32, "square", usable_part)
    return str(caught.value)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit images in dB."""
    return float(10 * np.log10(255**2 / (np.mean((a.astype(float) - b) ** 2) + 1e-9)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_supported_formats(kind):
    decoded = decode_image(encode(make_image(0, 80, 60), kind), 32, "square", 1)
    assert (decoded.width, decoded.height, decoded.mode) == (80, 60, f"{kind} RGB")
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == decoded.thumbnail.dtype == np.uint8
    assert decoded.thumbnail.shape == (64, 64)
    assert psnr(decoded.pixels, pixels(encode(make_image(0, 80, 60), "PNG"), crop="square")) > 28


def test_gray_and_cmyk_are_converted_to_rgb():
    gray = make_image(0).convert("L")
    expected = pixels(encode(gray.convert("RGB"), "PNG"))
    for image, kind in (
        (gray, "JPEG"),
        (gray, "PNG"),
        (gray.convert("LA"), "PNG"),
        (gray.convert("P"), "PNG"),
    ):
        assert psnr(pixels(encode(image, kind)), expected) > 35, (image.mode, kind)
    assert (
        psnr(
            pixels(encode(make_image(0).convert("CMYK"), "JPEG", quality=95)),
            pixels(encode(make_image(0), "PNG")),
        )
        > 30
    )


def test_16_bit_gray_is_scaled_not_clipped():
    gray = np.asarray(make_image(0).convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(
        pixels(encode(deep, "PNG")), pixels(encode(Image.fromarray(gray), "PNG"))
    )


def test_transparent_pixels_become_black():
    image = make_image(0).convert("RGBA")
    image.putalpha(0)
    assert pixels(encode(image, "PNG")).max() == 0
    palette = Image.new("P", (64, 64), 7)
    palette.putpalette([200] * 768)
    assert pixels(encode(palette, "PNG", transparency=7)).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image, exif = make_image(0, 96, 64), Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, EXIF_TRANSPOSE.get(orientation)
    )
    stored = image if inverse is None else image.transpose(inverse)
    decoded = decode_image(encode(stored, "PNG", exif=exif), 32, "none", 1)
    assert (decoded.width, decoded.height) == (96, 64)
    np.testing.assert_array_equal(decoded.pixels, pixels(encode(image, "PNG")))


def test_invalid_exif_is_ignored():
    content = encode(make_image(0), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 40)
    np.testing.assert_array_equal(pixels(content), pixels(encode(make_image(0))))


def test_reduced_decoding_matches_full_decoding():
    """5 MP and 2 MP to 224 and 64 pixels, with detail at every scale; the threshold is far above what a network notices."""
    rng = np.random.default_rng(0)
    for width, height, size in ((2592, 1944, 224), (1600, 1200, 64)):
        detail = Image.fromarray(
            rng.integers(0, 255, (height // 3, width // 3, 3), dtype=np.uint8)
        ).resize((width, height))
        content = encode(Image.blend(make_image(1, width, height), detail, 0.3), quality=92)
        whole = Image.open(io.BytesIO(content)).convert("RGB")
        for crop in ("square", "cervix", "none"):
            reduced = decode_image(content, size, crop, 1)
            kept = reduced.crop_box
            box = (kept.left * width, kept.top * height, kept.right * width, kept.bottom * height)
            full = whole.resize((size, size), Image.Resampling.BICUBIC, box=box)
            assert psnr(reduced.pixels, np.asarray(full)) > 38, (size, crop)


def test_aliasing_is_below_11_percent_of_contrast():
    """Of black and white stripes finer than the result can show.

    The decoder's block means let that much through; photographs have no such stripes, see the PSNR above.
    """
    for period, size in (
        (3, 32),
        (5, 32),
        (7, 32),
        (11, 32),
        (3, 64),
        (5, 64),
        (7, 64),
        (3, 80),
        (5, 80),
        (3, 84),
    ):
        stripes = ((np.arange(1024) % period) < period / 2) * 255
        image = Image.fromarray(np.tile(stripes.astype(np.uint8), (1024, 1))).convert("RGB")
        assert pixels(encode(image, quality=95), size)[2:-2, 2:-2].std() < 0.11 * 127, (
            period,
            size,
        )


FRAME, SECOND_FRAME = make_image(0), make_image(1)
WEBP = encode(FRAME, "WEBP")
INVALID = {
    "empty": (b"", "empty: 0 bytes"),
    "HTML": (b"<html>404 not found</html>", "not an image: expected JPEG, PNG, WEBP, BMP"),
    "TIFF": (encode(FRAME, "TIFF"), "not an image: expected JPEG, PNG, WEBP, BMP"),
    "GIF": (encode(FRAME, "GIF"), "not an image: expected JPEG, PNG, WEBP, BMP"),
    "small": (encode(make_image(0, 64, 16)), "too small: 64 x 16 pixels"),
    "animated PNG": (
        encode(FRAME, "PNG", save_all=True, append_images=[SECOND_FRAME]),
        "animated: 2 images",
    ),
    "animated WEBP": (
        encode(FRAME, "WEBP", save_all=True, append_images=[SECOND_FRAME]),
        "animated: 2 images",
    ),
    "elongated": (make_png(32, 2_500_000), "too elongated: 32 x 2500000 pixels"),
    "large": (make_png(9000, 9000), "too large: 9000 x 9000 pixels"),
    "large WEBP": (
        WEBP[:26] + struct.pack("<HH", 6000, 6000) + WEBP[30:],
        "too large: 6000 x 6000 pixels",
    ),
    "decompression bomb": (make_png(60000, 60000), f"too large: more than {MAX_PIXELS} pixels"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_file_is_rejected_with_reason(name):
    content, reason = INVALID[name]
    assert rejection_reason(content) == reason


def test_second_frame_of_mpo_is_ignored():
    content = encode(make_image(0), "MPO", save_all=True, append_images=[make_image(1)])
    decoded = decode_image(content, 32, "none", 1)
    assert decoded.mode == "MPO RGB"
    assert psnr(decoded.pixels, pixels(encode(make_image(0), "PNG"))) > 28


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_keeps_decoded_rows_only(kind):
    content = encode(make_image(0, 256, 256), kind)
    truncated = content[: int(0.6 * len(content))]
    assert rejection_reason(truncated).startswith("truncated: ")
    assert rejection_reason(truncated, usable_part=0.95).startswith("truncated: ")
    decoded = decode_image(truncated, 32, "none", usable_part=0.2)
    assert 0.3 < decoded.height / 256 < 0.75
    whole, _, _ = decode_and_orient(content, 256, 1)
    expected = whole.resize((32, 32), Image.Resampling.BICUBIC, box=(0, 0, 256, decoded.height))
    assert psnr(decoded.pixels, np.asarray(expected)) > 30


def test_truncated_png_is_read_with_its_orientation(monkeypatch):
    """Pillow decodes a PNG in search of EXIF data behind its pixels: in vain where they end early, and for minutes if large."""
    content = encode(make_image(0, 256, 256), "PNG")
    decodings, prepare = [], PngImageFile.load_prepare
    monkeypatch.setattr(
        PngImageFile, "load_prepare", lambda self: decodings.append(1) or prepare(self)
    )
    decode_image(content[: int(0.8 * len(content))], 32, "none", usable_part=0.2)
    assert len(decodings) == 2, "once to see that it is truncated, once for its rows"
    turned = encode(
        make_image(0, 256, 250),
        "PNG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
    )
    assert decode_image(turned[: int(0.8 * len(turned))], 32, "none", usable_part=0.2).width < 250


def test_png_cut_off_behind_its_pixels_is_whole():
    content = encode(make_image(0), "PNG")
    for end in (b"", b"\0\1\0\0tEXtk", make_chunk(b"tEXt", b"k\0v")[:-1]):
        np.testing.assert_array_equal(pixels(content[:-12] + end), pixels(content))


@pytest.mark.parametrize(
    "exif", [None, b"Exif\0\0MM\0*\0\0\0\x08\0\0"], ids=["without EXIF", "with EXIF"]
)
def test_png_with_corrupt_pixel_data_is_refused(exif):
    """Not accepted with black rows from there on, as when Pillow's error was lost in the search for EXIF data."""
    content = bytearray(encode(make_image(0, 256, 256), "PNG", **({"exif": exif} if exif else {})))
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    assert rejection_reason(bytes(content)) == "unreadable: OSError"


def test_conversion_in_strips_equals_conversion_at_once(monkeypatch):
    rgba = make_image(0, 60, 70).convert("RGBA")
    rgba.putalpha(make_image(1, 60, 70).convert("L"))
    palette = rgba.convert("RGB").quantize(16)
    for content in (
        encode(rgba, "PNG"),
        encode(rgba.convert("LA"), "PNG"),
        encode(palette, "PNG", transparency=b"\0\x80\x10"),
    ):
        whole = pixels(content)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "STRIP", 7)
            np.testing.assert_array_equal(pixels(content), whole)


def test_truncated_progressive_file_is_always_rejected():
    """Its missing data are spread over all rows."""
    content = encode(make_image(0, 256, 256), progressive=True)
    assert (
        rejection_reason(content[: int(0.6 * len(content))], usable_part=0.01)
        == "truncated: 0% of the rows usable"
    )


UNDAMAGED = [
    encode(make_image(0, 48, 40)),
    encode(make_image(1, 48, 40), progressive=True),
    encode(make_image(2, 40, 48), "PNG"),
    encode(make_image(3, 48, 40), "WEBP"),
    encode(make_image(4, 48, 40), "BMP"),
    encode(
        make_image(5, 48, 40),
        exif=Image.Exif().tobytes() or b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00",
    ),
    encode(make_image(6, 48, 40).quantize(16), "PNG", transparency=3),
    encode(make_image(7, 48, 40), "PNG", save_all=True, append_images=[make_image(8, 48, 40)]),
]


# A deadline far above the time of a decode (a millisecond) distinguishes a hang from a busy machine.
@settings(
    max_examples=400,
    deadline=20_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    content=st.sampled_from(UNDAMAGED),
    changes=st.lists(
        st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=6), st.booleans()),
        max_size=8,
    ),
    kept=st.floats(0.01, 1),
    usable_part=st.sampled_from([0.0, 0.5, 1.0]),
    crop=st.sampled_from(["none", "square", "cervix"]),
)
def test_damaged_file_gives_image_or_reason(content, changes, kept, usable_part, crop):
    damaged = bytearray(content[: max(1, int(kept * len(content)))])
    for place, patch, insert in changes:
        place %= len(damaged)
        damaged[place : place + (0 if insert else len(patch))] = patch
    try:
        decoded = decode_image(bytes(damaged), 32, crop, usable_part)
    except ImageDecodeError as error:
        kind, _, detail = str(error).partition(": ")
        assert kind in REASONS
        assert detail
    else:
        assert decoded.pixels.shape == (32, 32, 3)
        assert decoded.pixels.dtype == np.uint8
        assert min(decoded.width, decoded.height) >= 32
        assert 0 <= decoded.crop_box.left < decoded.crop_box.right <= 1
        assert 0 <= decoded.crop_box.top < decoded.crop_box.bottom <= 1
