"""Decoding: what every kind of file becomes, how exact the reduced decoding is, and that hostile bytes only give reasons."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.mixture import GaussianMixture

from stages.photographs.crops import _two_gaussians
from stages.photographs.decoding import MAX_PIXELS, UPRIGHT, ImageDecodeError, decode_image, upright
from stages.photographs.file_limits import decode_cost_violation
from stages.photographs.stains import ACETIC, GREEN, IODINE, estimate_stain
from tests.helpers.image_files import encoded, picture


def pixels(content: bytes, size: int = 32, crop: str = "none") -> np.ndarray:
    return decode_image(content, size, crop, usable_part=1).pixels.astype(int)


def reason(content: bytes, usable_part: float = 1) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(content, 32, "square", usable_part)
    return str(caught.value)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB."""
    return float(10 * np.log10(255**2 / (np.mean((a.astype(float) - b) ** 2) + 1e-9)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats(kind):
    photograph = decode_image(encoded(picture(0, 80, 60), kind), 32, "square", 1)
    assert (photograph.width, photograph.height, photograph.mode) == (80, 60, f"{kind} RGB")
    assert photograph.pixels.shape == (32, 32, 3)
    assert photograph.pixels.dtype == photograph.thumbnail.dtype == np.uint8
    assert photograph.thumbnail.shape == (64, 64)
    assert psnr(photograph.pixels, pixels(encoded(picture(0, 80, 60), "PNG"), crop="square")) > 28


def test_grey_and_cmyk_become_rgb():
    grey = picture(0).convert("L")
    wanted = pixels(encoded(grey.convert("RGB"), "PNG"))
    for image, kind in ((grey, "JPEG"), (grey, "PNG"), (grey.convert("LA"), "PNG"), (grey.convert("P"), "PNG")):
        assert psnr(pixels(encoded(image, kind)), wanted) > 35, (image.mode, kind)
    assert psnr(pixels(encoded(picture(0).convert("CMYK"), "JPEG", quality=95)), pixels(encoded(picture(0), "PNG"))) > 30


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.asarray(picture(0).convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels(encoded(deep, "PNG")), pixels(encoded(Image.fromarray(grey), "PNG")))


def test_transparency_goes_on_black():
    image = picture(0).convert("RGBA")
    image.putalpha(0)
    assert pixels(encoded(image, "PNG")).max() == 0
    index = Image.new("P", (64, 64), 7)
    index.putpalette([200] * 768)
    assert pixels(encoded(index, "PNG", transparency=7)).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation):
    image, exif = picture(0, 96, 64), Image.Exif()
    exif[0x0112] = orientation
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = image.transpose(back.get(orientation, UPRIGHT[orientation])) if orientation in UPRIGHT else image
    photograph = decode_image(encoded(stored, "PNG", exif=exif), 32, "none", 1)
    assert (photograph.width, photograph.height) == (96, 64)
    np.testing.assert_array_equal(photograph.pixels, pixels(encoded(image, "PNG")))


def test_broken_metadata_does_not_spoil_the_picture():
    content = encoded(picture(0), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 40)
    np.testing.assert_array_equal(pixels(content), pixels(encoded(picture(0))))


def test_crops():
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste(Image.new("RGB", (64, 64), "blue"), (32, 0))
    content = encoded(wide, "PNG")
    assert decode_image(content, 32, "square", 1).region.left == 0.25
    assert (pixels(content, crop="square")[:, 1:-1] == (0, 0, 255)).all()
    assert (pixels(content, crop="none")[:, 0] == (255, 0, 0)).all()


def test_cervix_is_found_where_it_lies():
    """A reddish disc off the centre of a pale frame, of three sizes; a bar is none, and the central square is kept."""

    def redden(where):
        image = Image.fromarray(np.where(where[..., None], pale * (0.9, 0.5, 0.5), pale).astype(np.uint8))
        return decode_image(encoded(image), 32, "cervix", 1).region

    x, y = np.meshgrid((np.arange(160) + 0.5) / 160, (np.arange(120) + 0.5) / 120)
    pale = np.asarray(picture(0, 160, 120).convert("L"), float)[..., None] / 8 + (190, 180, 165)
    for left, top, radius in ((0.45, 0.55, 0.3), (0.4, 0.45, 0.22), (0.55, 0.5, 0.38)):
        region = redden(np.hypot((x - left) * 160, (y - top) * 120) < radius * 120)
        assert region.kind == "cervix"
        assert (region.left + region.right) / 2 == pytest.approx(left, abs=0.06)
        assert (region.top + region.bottom) / 2 == pytest.approx(top, abs=0.1)
        assert 2 * radius <= region.bottom - region.top <= 3.2 * radius, "all of it and a margin"
    region = redden(abs(y - 0.5) < 0.06)
    assert (region.left, region.right, region.kind) == (0.125, 0.875, "fallback")


@pytest.mark.parametrize(
    ("colour", "stain"),
    [
        ((200, 120, 120), ACETIC),
        ((190, 150, 140), ACETIC),
        ((140, 80, 30), IODINE),
        ((60, 120, 90), GREEN),
        ((0, 0, 0), ACETIC),
    ],
)
def test_stains_are_guessed_by_colour(colour, stain):
    assert estimate_stain(np.full((4, 4, 3), colour, np.uint8)) == stain


def test_two_clouds_are_told_apart_as_by_a_mixture_model():
    rng = np.random.default_rng(0)
    near, far = rng.normal((1, 2), (0.4, 0.6), (900, 2)), rng.normal((2.5, 0), (0.7, 0.3), (600, 2))
    x, y = points = np.concatenate([near, far]).T
    share, nearer = _two_gaussians(x, y, x < np.median(x))
    assert nearer
    assert ((share > 0.5) == (np.arange(1500) < 900)).mean() > 0.97
    mixture = GaussianMixture(2, means_init=[(1, 2), (2.5, 0)], tol=1e-6, max_iter=200).fit(points.T)
    assert abs(share - mixture.predict_proba(points.T)[:, 0]).max() < 0.02
    same = np.ones(50)
    assert np.isfinite(_two_gaussians(same, same, same > 0)[0]).all(), "without any spread, too"


def test_reduced_decoding_equals_full_decoding():
    """5 MP and 2 MP to 224 and 64 pixels, with detail at every scale; the limit is far above what a network notices."""
    rng = np.random.default_rng(0)
    for width, height, size in ((2592, 1944, 224), (1600, 1200, 64)):
        detail = Image.fromarray(rng.integers(0, 255, (height // 3, width // 3, 3), dtype=np.uint8)).resize((width, height))
        image = Image.blend(picture(1, width, height), detail, 0.3)
        content = encoded(image, quality=92)
        whole = Image.open(io.BytesIO(content)).convert("RGB")
        for crop in ("square", "cervix", "none"):
            reduced = decode_image(content, size, crop, 1)
            region = reduced.region
            box = (region.left * width, region.top * height, region.right * width, region.bottom * height)
            full = whole.resize((size, size), Image.Resampling.BICUBIC, box=box)
            assert psnr(reduced.pixels, np.asarray(full)) > 38, (size, crop)


def test_hardly_any_aliasing():
    """Of black and white stripes finer than the result can show a tenth of the contrast is left at worst.

    The decoder's block means let that much through; photographs have no such stripes, see the decibels above.
    """
    for period, size in ((3, 32), (5, 32), (7, 32), (11, 32), (3, 64), (5, 64), (7, 64), (3, 80), (5, 80), (3, 84)):
        stripes = ((np.arange(1024) % period) < period / 2) * 255
        image = Image.fromarray(np.tile(stripes.astype(np.uint8), (1024, 1))).convert("RGB")
        assert pixels(encoded(image, quality=95), size)[2:-2, 2:-2].std() < 0.11 * 127, (period, size)


def test_rejections():
    still, other = picture(0), picture(1)
    cases = {
        b"": "empty: 0 bytes",
        b"<html>404 not found</html>": "not an image: expected JPEG, PNG, WEBP, BMP",
        encoded(still, "TIFF"): "not an image: expected JPEG, PNG, WEBP, BMP",
        encoded(still, "GIF"): "not an image: expected JPEG, PNG, WEBP, BMP",
        encoded(picture(0, 64, 16)): "too small: 64 x 16 pixels",
        encoded(still, "PNG", save_all=True, append_images=[other]): "animated: 2 pictures",
        encoded(still, "WEBP", save_all=True, append_images=[other]): "animated: 2 pictures",
        bomb(9000, 9000): "too large: 9000 x 9000 pixels",
        bomb(60000, 60000): f"too large: more than {MAX_PIXELS} pixels",
    }
    for content, wanted in cases.items():
        assert reason(content) == wanted


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PROGRESSIVE = encoded(picture(0), progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
PLAIN, PNG = encoded(picture(0)), encoded(picture(0), "PNG")
COSTLY = {
    "many scans": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN + PROGRESSIVE[-2:], "more than 100 scans"),
    "no end of scans": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN, "more than 100 scans"),
    "many comments": (PLAIN[:2] + 2**21 * b"\xff\xfe\x00\x02" + PLAIN[2:], "more than 4 MiB before the first scan"),
    "fill bytes": (PLAIN[:2] + 2**23 * b"\xff" + PLAIN[2:], "more than 4 MiB before the first scan"),
    "nothing but fill bytes": (PLAIN[:2] + 2**23 * b"\xff", "more than 4 MiB before the first scan"),
    "many chunks": (
        PNG[:33] + 2**17 * (b"\0\0\0\0exAm" + zlib.crc32(b"exAm").to_bytes(4, "big")) + PNG[33:],
        "more than 65536 parts",
    ),
    "steps": (
        b"BM" + struct.pack("<III", 54, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 99, 99, 1, 8, 1, 0, 0, 0, 0, 0) + bytes(2**20),
        "run-length encoded BMP",
    ),
}


@pytest.mark.parametrize("file", COSTLY)
def test_files_made_to_take_for_ever_are_refused_undecoded(file, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    content, wanted = COSTLY[file]
    assert reason(content) == f"too costly: {wanted}"


def test_what_cameras_write_is_within_the_limits():
    video = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes() + 200 * b"\xff\xda\0\2"
    for content in (PROGRESSIVE, PLAIN, PLAIN + video, encoded(picture(0), exif=b"Exif\0\0" + 200 * b"\xff\xda\xff\xd9")):
        np.testing.assert_array_equal(pixels(content), pixels(PROGRESSIVE if content is PROGRESSIVE else PLAIN))
    assert decode_cost_violation(PROGRESSIVE[:-2] + 90 * LAST_SCAN) == ""


def test_second_picture_of_a_phone_is_ignored():
    content = encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    photograph = decode_image(content, 32, "none", 1)
    assert photograph.mode == "MPO RGB"
    assert psnr(photograph.pixels, pixels(encoded(picture(0), "PNG"))) > 28


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated(kind):
    content = encoded(picture(0, 256, 256), kind)
    cut = content[: int(0.6 * len(content))]
    assert reason(cut).startswith("truncated: ")
    assert reason(cut, usable_part=0.95).startswith("truncated: ")
    photograph = decode_image(cut, 32, "none", usable_part=0.2)
    part = photograph.height / 256
    assert 0.3 < part < 0.75
    whole, _, _ = upright(content, 256, 1)
    wanted = whole.resize((32, 32), Image.Resampling.BICUBIC, box=(0, 0, 256, photograph.height))
    assert psnr(photograph.pixels, np.asarray(wanted)) > 30, "only rows that were decoded are kept"


def test_truncation_that_spreads_over_all_rows_is_never_usable():
    content = encoded(picture(0, 256, 256), progressive=True)
    assert reason(content[: int(0.6 * len(content))], usable_part=0.01) == "truncated: 0% of the rows usable"


WHOLE = [
    encoded(picture(0, 48, 40)),
    encoded(picture(1, 48, 40), progressive=True),
    encoded(picture(2, 40, 48), "PNG"),
    encoded(picture(3, 48, 40), "WEBP"),
    encoded(picture(4, 48, 40), "BMP"),
    encoded(picture(5, 48, 40), exif=Image.Exif().tobytes() or b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00"),
    encoded(picture(6, 48, 40).quantize(16), "PNG", transparency=3),
    encoded(picture(7, 48, 40), "PNG", save_all=True, append_images=[picture(8, 48, 40)]),
]


# A deadline far above what a decode takes (a millisecond) tells a hang from a busy machine.
@settings(max_examples=400, deadline=20_000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=6), st.booleans()), max_size=8),
    kept=st.floats(0.01, 1),
    usable_part=st.sampled_from([0.0, 0.5, 1.0]),
    crop=st.sampled_from(["none", "square", "cervix"]),
)
def test_damaged_files_give_a_photograph_or_a_reason(content, changes, kept, usable_part, crop):
    damaged = bytearray(content[: max(1, int(kept * len(content)))])
    for place, patch, insert in changes:
        place %= len(damaged)
        damaged[place : place + (0 if insert else len(patch))] = patch
    try:
        photograph = decode_image(bytes(damaged), 32, crop, usable_part)
    except ImageDecodeError as error:
        kind, _, detail = str(error).partition(": ")
        assert kind in ("empty", "too costly", "not an image", "unreadable", "too large", "too small", "animated", "truncated")
        assert detail
    else:
        assert photograph.pixels.shape == (32, 32, 3)
        assert photograph.pixels.dtype == np.uint8
        assert min(photograph.width, photograph.height) >= 32
        region = photograph.region
        assert 0 <= region.left < region.right <= 1
        assert 0 <= region.top < region.bottom <= 1
