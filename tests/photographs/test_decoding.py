"""Decoding: formats and color modes, orientation, accuracy at reduced size, and invalid files."""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.photographs import decoding
from stages.photographs.decoding import EXIF_TRANSPOSE, MAX_PIXELS, ImageDecodeError, decode_image
from tests.helpers.image_files import encode, make_chunk, make_image, make_png, make_profile


def pixels(content: bytes, size: int = 32, crop: str = "none") -> np.ndarray:
    return decode_image(content, size, crop).pixels.astype(int)


def upright(content: bytes) -> np.ndarray:
    """The whole image, not resized."""
    return np.asarray(decoding.decode_and_orient(content, 1000)[0]).astype(int)


def rejection_reason(content: bytes) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(content, 32, "square")
    return str(caught.value)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit images in dB."""
    return float(10 * np.log10(255**2 / (np.mean((a.astype(float) - b) ** 2) + 1e-9)))


PHOTOGRAPH = make_image(0, 80, 60)
GRAY = PHOTOGRAPH.convert("L")
TWO_FRAMES = {"save_all": True, "append_images": [make_image(1, 80, 60)]}


@pytest.mark.parametrize(
    ("image", "kind", "options", "least"),
    [
        (PHOTOGRAPH, "JPEG", {}, 28),
        (PHOTOGRAPH, "PNG", {}, 90),
        (PHOTOGRAPH, "WEBP", {}, 28),
        (PHOTOGRAPH, "BMP", {}, 90),
        (PHOTOGRAPH, "AVIF", {}, 28),
        (PHOTOGRAPH, "TIFF", {}, 90),
        (Image.fromarray(np.asarray(GRAY).astype(">u2") * 257), "TIFF", {}, 90),
        (PHOTOGRAPH, "MPO", TWO_FRAMES, 28),
        (PHOTOGRAPH.convert("CMYK"), "JPEG", {"quality": 95}, 30),
        (GRAY, "JPEG", {}, 35),
        (GRAY, "PNG", {}, 90),
        (GRAY.convert("LA"), "PNG", {}, 90),
        (GRAY.convert("P"), "PNG", {}, 35),
        (Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), "PNG", {}, 90),
    ],
)
def test_formats_and_modes_give_the_same_rgb(image, kind, options, least):
    """Of the least PSNR in dB; 90 means equal."""
    decoded = decode_image(encode(image, kind, **options), 32, "square")
    reference = PHOTOGRAPH if image.mode in ("RGB", "CMYK") else GRAY.convert("RGB")
    assert psnr(decoded.pixels, pixels(encode(reference, "PNG"), crop="square")) > least
    assert (decoded.width, decoded.height, decoded.mode) == (80, 60, f"{kind} {image.mode}")
    assert (decoded.pixels.shape, decoded.thumbnail.shape) == ((32, 32, 3), (64, 64))
    assert decoded.pixels.dtype == decoded.thumbnail.dtype == np.uint8


def test_transparent_pixels_become_black():
    image = PHOTOGRAPH.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").point(lambda v: 255 * (v > 127)).resize(image.size))
    assert pixels(encode(image, "PNG"))[:12].max() == 0
    palette = Image.linear_gradient("L").point(lambda v: v // 128).convert("P")
    palette.putpalette([200] * 3 + [90] * 3)
    assert pixels(encode(palette, "PNG", transparency=0))[:12].max() == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_values_of_fewer_bits_in_16_bit_files_are_scaled(bits):
    values = np.asarray(GRAY).astype(np.uint32)
    deep = Image.fromarray((values * (2**bits - 1) // values.max()).astype(np.uint16))
    decoded = decode_image(encode(deep, "PNG"), 32, "square")
    assert decoded.mode == f"PNG I;16 with values of {bits} bits"
    assert decoded.pixels.max() > 240
    assert np.corrcoef(decoded.pixels[..., 0].ravel(), square(GRAY).ravel())[0, 1] > 0.999


def square(gray: Image.Image) -> np.ndarray:
    return pixels(encode(gray, "PNG"), crop="square")[..., 0]


TRANSPARENT = PHOTOGRAPH.convert("RGBA")
TRANSPARENT.putalpha(0)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (64, 64), "white"),
        TRANSPARENT,
        PHOTOGRAPH.point(lambda value: value // 17),  # 12 of 16 bits, of which a decoder keeps 8
    ],
)
def test_blank_images_are_rejected(image):
    assert rejection_reason(encode(image, "PNG")).startswith("blank: hardly any contrast")


def profile(red: bytes, blue: bytes, name: bytes) -> bytes:
    """The ICC profile of sRGB, or of a space whose red and blue are exchanged."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    parts = {b"rXYZ": red, b"bXYZ": blue, "sRGB".encode("utf-16-be"): name}
    return re.sub(b"|".join(parts), lambda match: parts[match[0]], content)


def test_colors_of_other_spaces_are_converted_to_srgb():
    plain = pixels(encode(PHOTOGRAPH, "PNG"))
    srgb = profile(b"rXYZ", b"bXYZ", "sRGB".encode("utf-16-be"))
    other = profile(b"bXYZ", b"rXYZ", "gRBX".encode("utf-16-be"))
    for icc, expected in ((srgb, plain), (b"damaged", plain), (other, plain[..., ::-1])):
        found = pixels(encode(PHOTOGRAPH, "PNG", icc_profile=icc))
        assert abs(found - expected).max() <= 2


def test_gray_and_cmyk_are_converted_by_their_profiles():
    """Of gray whose values are luminances, and of inks of which cyan alone is seen, as gray."""
    gray = make_profile(b"GRAY", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">IIHxx", 0, 1, 256)})
    found = upright(encode(GRAY, "PNG", icc_profile=gray))
    luminance = np.asarray(GRAY) / 255
    encoded = np.where(
        luminance <= 0.0031308, 12.92 * luminance, 1.055 * luminance ** (1 / 2.4) - 0.055
    )
    assert abs(found - 255 * encoded[..., None]).max() <= 2

    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if k % 4 == 0 else 0 for k in range(9)))
    colors = b"".join(bytes([255 - 255 * (k // 8), 128, 128]) for k in range(16))  # L, a, b
    table = b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + matrix + 4 * ramp + colors + 3 * ramp
    inks = make_profile(b"CMYK", b"Lab ", {b"A2B0": table})
    image = PHOTOGRAPH.convert("CMYK")
    found = upright(encode(image, "TIFF", icc_profile=inks))
    assert np.ptp(found, axis=2).max() <= 2
    lightness = 116 * np.cbrt(np.where(found <= 10, 0, (found / 255 + 0.055) / 1.055) ** 2.4) - 16
    bright = found[..., 0] > 30
    cyan = np.asarray(image)[..., 0] / 255
    assert abs(lightness[..., 0] - 100 * (1 - cyan))[bright].max() <= 2

    for other, icc in ((PHOTOGRAPH, gray), (GRAY, inks)):  # a profile of another kind is ignored
        found = upright(encode(other, "PNG", icc_profile=icc))
        assert (found == np.asarray(other.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, EXIF_TRANSPOSE.get(orientation)
    )
    image = PHOTOGRAPH if stored is None else PHOTOGRAPH.transpose(stored)
    decoded = decode_image(encode(image, kind, exif=exif), 32, "none")
    assert (decoded.width, decoded.height) == PHOTOGRAPH.size
    np.testing.assert_array_equal(decoded.pixels, pixels(encode(PHOTOGRAPH, "PNG")))


def test_invalid_exif_is_ignored():
    content = encode(PHOTOGRAPH, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 40)
    np.testing.assert_array_equal(pixels(content), pixels(encode(PHOTOGRAPH)))


@pytest.mark.parametrize(("width", "height", "size"), [(2592, 1944, 224), (1600, 1200, 64)])
def test_reduced_decoding_matches_full_decoding(width, height, size):
    """With detail at every scale; the threshold is far above what a network notices."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 3, width // 3, 3), np.uint8)
    detail = Image.fromarray(noise).resize((width, height))
    content = encode(Image.blend(make_image(1, width, height), detail, 0.3), quality=92)
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    for crop in ("square", "cervix", "none"):
        reduced = decode_image(content, size, crop)
        kept = reduced.crop_box
        box = (kept.left * width, kept.top * height, kept.right * width, kept.bottom * height)
        full = whole.resize((size, size), Image.Resampling.BICUBIC, box=box)
        assert psnr(reduced.pixels, np.asarray(full)) > 38, crop


STRIPES = [(n, size) for n in (3, 5, 7, 11) for size in (32, 64, 80, 84) if 2 * n * size <= 1024]


@pytest.mark.parametrize(("period", "size"), STRIPES)
def test_aliasing_is_below_11_percent_of_contrast(period, size):
    """Of black and white stripes, two or more in a pixel of the result; photographs have none.

    The decoder's block means let that much through; see the PSNR above for other detail.
    """
    stripes = np.tile(((np.arange(1024) % period) < period / 2).astype(np.uint8) * 255, (1024, 1))
    content = encode(Image.fromarray(stripes).convert("RGB"), quality=95)
    assert pixels(content, size)[2:-2, 2:-2].std() < 0.11 * 127


WEBP = encode(PHOTOGRAPH, "WEBP")
NO_IMAGE = "not an image: expected JPEG, PNG, WEBP, BMP"
TRUNCATED = "truncated: the end of the pixels is missing"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"<html>404 not found</html>", NO_IMAGE),
        (
            encode(PHOTOGRAPH, "TIFF", **TWO_FRAMES),
            "too costly: TIFF of several images, as raw files of cameras are: save one as PNG",
        ),
        (
            encode(PHOTOGRAPH, "TIFF", compression="tiff_lzw"),
            "too costly: compressed TIFF, save it as PNG or uncompressed",
        ),
        (encode(PHOTOGRAPH, "GIF"), "other format: GIF: save it as PNG"),
        (
            b"\0\0\0\x18ftypheic" + bytes(200),
            "other format: HEIC: convert it to JPEG, for example with heif-convert",
        ),
        (
            bytes(128) + b"DICM" + bytes(200),
            "other format: DICOM: convert it to PNG, for example with dcm2img of DCMTK",
        ),
        (encode(make_image(0, 64, 16)), "too small: 64 x 16 pixels"),
        (encode(PHOTOGRAPH, "PNG", **TWO_FRAMES), "animated: 2 images"),
        (encode(PHOTOGRAPH, "WEBP", **TWO_FRAMES), "animated: 2 images"),
        (make_png(32, 2_500_000), "too elongated: 32 x 2500000 pixels"),
        (make_png(9000, 9000), "too large: 9000 x 9000 pixels"),
        (
            WEBP[:26] + struct.pack("<HH", 6000, 6000) + WEBP[30:],
            "too large: 6000 x 6000 pixels",
        ),
        (make_png(60000, 60000), f"too large: more than {MAX_PIXELS} pixels"),
        (encode(PHOTOGRAPH)[:-900], TRUNCATED),
        (encode(PHOTOGRAPH, progressive=True)[:-900], TRUNCATED),
        (encode(PHOTOGRAPH, "PNG")[:-900], TRUNCATED),
        (encode(PHOTOGRAPH, "BMP")[:-900], TRUNCATED),
    ],
)
def test_invalid_file_is_rejected_with_reason(content, reason):
    assert rejection_reason(content) == reason


@pytest.mark.parametrize("end", [b"", b"\0\1\0\0tEXtk", make_chunk(b"tEXt", b"k\0v")[:-1]])
def test_png_cut_off_behind_its_pixels_is_whole(end):
    content = encode(PHOTOGRAPH, "PNG")
    np.testing.assert_array_equal(pixels(content[:-12] + end), pixels(content))


@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_png_with_corrupt_pixel_data_is_refused(options):
    """Pillow loses the error when it looks for EXIF data first, and further rows stay black."""
    content = bytearray(encode(make_image(0, 256, 256), "PNG", **options))
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    assert rejection_reason(bytes(content)) == "unreadable: OSError"


def test_conversion_in_strips_equals_conversion_at_once(monkeypatch):
    rgba = make_image(0, 60, 70).convert("RGBA")
    rgba.putalpha(make_image(1, 60, 70).convert("L"))
    palette = rgba.convert("RGB").quantize(16)
    contents = [encode(rgba, "PNG"), encode(rgba.convert("LA"), "PNG")]
    contents.append(encode(palette, "PNG", transparency=b"\0\x80\x10"))
    whole = [pixels(content) for content in contents]
    monkeypatch.setattr(decoding, "STRIP", 7)
    np.testing.assert_array_equal([pixels(content) for content in contents], whole)
