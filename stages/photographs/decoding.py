"""One file's bytes -> a small upright RGB image, or the reason why not. The bytes are untrusted.

JPEG is decoded at 1/2, 1/4 or 1/8 of its size inside the decoder, which takes the mean of whole blocks, down to no less than
1.5 times the target size; a bicubic filter as wide as the remaining reduction does the rest.
"""

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from stages.photographs.crops import CropBox, find_crop
from stages.photographs.file_limits import decode_cost_violation
from stages.photographs.stains import estimate_stain

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # every further decoder can be reached by malicious bytes
MAX_PIXELS = 80_000_000  # below the size at which Pillow itself warns of a decompression bomb
MAX_WEBP_PIXELS = 25_000_000  # Pillow holds the file three times, and 22 bytes for each pixel
MIN_SIDE = 32  # pixels: smaller images are icons and previews
MAX_ELONGATION = (
    16  # longer side / shorter side: beyond panoramas; the preview for the cervix grows with it
)
THUMBNAIL = 64  # pixels, side of the gray image that duplicates are found with
OVERSAMPLE = 1.5  # smallest reduction that is left to the final filter; twice that where a crop is yet to be found
MCU = 16  # pixels: the most rows that one row of JPEG blocks covers
STRIP = 256  # rows that are converted at once, so that no second image of the full size comes about
ORIENTATION = 0x0112  # EXIF tag
EXIF_TRANSPOSE = {  # value of the tag -> its inverse; PIL.ImageOps.exif_transpose would need the full-size image
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodeError(ValueError):
    """The file gives no usable image; the message is "kind: detail"."""


@dataclass(frozen=True)
class DecodedImage:
    """An image, cropped and resized.

    Attributes:
        pixels: uint8 (size, size, 3), RGB.
        thumbnail: uint8 (64, 64), gray, the whole image stretched to a square.
        width: of the upright original.
        height: of the upright original.
        mode: of the file, such as JPEG RGB.
        stain: estimated from the mean color.
        crop_box: what was kept.
    """

    pixels: np.ndarray
    thumbnail: np.ndarray
    width: int
    height: int
    mode: str
    stain: str
    crop_box: CropBox


def decode_image(content: bytes, size: int, crop: str, usable_part: float) -> DecodedImage:
    """Decode, apply the EXIF orientation, crop and resize.

    Args:
        content: of the file.
        size: of the result, size x size pixels.
        crop: none, square or cervix.
        usable_part: a truncated file is accepted with at least this fraction of its rows; 1 accepts whole files only.

    Raises:
        ImageDecodeError: when the bytes give no usable image.
    """
    min_side = size * (2 * OVERSAMPLE if crop == "cervix" else OVERSAMPLE)
    image, original, mode = decode_and_orient(content, min_side, usable_part)
    crop_box = find_crop(image, crop)
    width, height = image.size
    box = (
        crop_box.left * width,
        crop_box.top * height,
        crop_box.right * width,
        crop_box.bottom * height,
    )
    # As in the decoder, means of whole blocks come first as far as they may: several times faster than a wide filter.
    pixels = np.asarray(
        image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=OVERSAMPLE)
    )
    thumbnail = image.convert("L").resize(
        (THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0
    )
    return DecodedImage(
        pixels, np.asarray(thumbnail), *original, mode, estimate_stain(pixels), crop_box
    )


def decode_and_orient(
    content: bytes, min_side: float, usable_part: float
) -> tuple[Image.Image, tuple[int, int], str]:
    """The whole upright image in RGB, its shorter side at least `min_side` if it can be; the original's size; format and mode.

    Raises:
        ImageDecodeError: when the bytes give no usable image.
    """
    with warnings.catch_warnings():
        # About metadata and the palette; a bomb is refused below, at a lower limit than Pillow warns from.
        warnings.simplefilter("ignore")
        image, original, mode, orientation = _decode(content, min_side, usable_part)
        image = _rgb(image)
    if orientation in EXIF_TRANSPOSE:
        image = image.transpose(EXIF_TRANSPOSE[orientation])
        original = original[::-1] if orientation >= 5 else original
    return image, original, mode


def _open(content: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _decode(
    content: bytes, min_side: float, usable_part: float
) -> tuple[Image.Image, tuple[int, int], str, int]:
    """The pixels, the size before any reduction, format and mode, EXIF orientation (1..8)."""
    image = _open_valid(content)
    original, mode = image.size, f"{image.format} {image.mode}"
    scaled = (
        math.ceil(original[0] * min_side / min(original)),
        math.ceil(original[1] * min_side / min(original)),
    )
    if _load(image, scaled, len(content)):
        # Not before the pixels: Pillow would decode a PNG in search of metadata behind them, and their errors would be lost.
        return image, original, mode, _orientation(image)
    if not _keeps_rows_in_order(image):
        raise ImageDecodeError("truncated: 0% of the rows usable")
    del image  # before it is decoded again: two need a GiB
    upper, part = _usable_rows(content, scaled)
    if part < usable_part or usable_part == 1 or part * original[1] < MIN_SIDE:
        raise ImageDecodeError(f"truncated: {part:.0%} of the rows usable")
    return upper, (original[0], round(original[1] * part)), mode, _orientation(upper)


def _load(image: ImageFile.ImageFile, scaled: tuple[int, int], block: int) -> bool:
    """Decode the pixels, reduced to no less than `scaled` where the format can; whether they were complete."""
    try:
        image.draft(None, scaled)
        image.decodermaxblock = block  # in one go, not in 64 KiB
        image.load()
    except Exception as error:
        if "truncated" not in str(error).lower():
            raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
        return (
            image.format == "PNG" and not image.tile
        )  # the end is missing, but only of metadata behind the pixels
    return True


def _keeps_rows_in_order(image: Image.Image) -> bool:
    """Whether a truncated file has its upper rows whole; interlaced and progressive ones spread the damage over all rows."""
    return (
        image.format in ("JPEG", "MPO", "PNG")
        and not image.info.get("progressive")
        and not image.info.get("interlace")
    )


def _open_valid(content: bytes) -> ImageFile.ImageFile:
    """The image, not decoded yet; ImageDecodeError for what must not be decoded."""
    if not content:
        raise ImageDecodeError("empty: 0 bytes")
    if costly := decode_cost_violation(content):
        raise ImageDecodeError(f"too costly: {costly}")
    # Pillow raises nearly every kind of exception for corrupt files, and decoding untrusted bytes is the one place where each
    # of them means the same: this file is no image.
    try:
        image = _open(content)
    except UnidentifiedImageError:
        raise ImageDecodeError(f"not an image: expected {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageDecodeError(f"too large: more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    width, height = image.size
    if width * height > (MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS):
        raise ImageDecodeError(f"too large: {width} x {height} pixels")
    if min(width, height) < MIN_SIDE:
        raise ImageDecodeError(f"too small: {width} x {height} pixels")
    if max(width, height) > MAX_ELONGATION * min(width, height):
        raise ImageDecodeError(f"too elongated: {width} x {height} pixels")
    # Phones put a second image (depth, preview) into an MPO file; the first is the photograph.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageDecodeError(f"animated: {frames} images")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # corrupt metadata doesn't spoil the image
        return 1
    return value if value in EXIF_TRANSPOSE else 1


def _usable_rows(content: bytes, scaled: tuple[int, int]) -> tuple[Image.Image, float]:
    """The upper part of a truncated image that was decoded, and its fraction of the height.

    The decoder leaves one flat color where data are missing.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = _open(content)
        image.draft(None, scaled)
        image.load()
        decoded = _rows_above_flat_color(image)
    except Exception as error:
        raise ImageDecodeError(f"truncated: {type(error).__name__}") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    usable = max(0, decoded - MCU)  # the last row of blocks is only partly there
    return image.crop((0, 0, image.width, max(usable, 1))), usable / image.height


def _rows_above_flat_color(image: Image.Image) -> int:
    """The number of rows down to the last one that has another color than the last pixel."""
    width, height = image.size
    last_pixel = np.asarray(image.crop((width - 1, height - 1, width, height)))
    for bottom in range(height, 0, -STRIP):
        top = max(0, bottom - STRIP)
        strip = np.asarray(image.crop((0, top, width, bottom)))
        different = np.flatnonzero((strip != last_pixel).reshape(bottom - top, -1).any(axis=1))
        if len(different):
            return top + int(different[-1]) + 1
    return 0


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by rule: 16-bit gray is scaled, transparency goes on black, all else is converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    width, height = image.size
    result = Image.new("RGB", image.size)
    try:
        for top in range(0, height, STRIP):
            result.paste(
                _strip_to_rgb(image.crop((0, top, width, min(top + STRIP, height)))), (0, top)
            )
    except Exception as error:  # a corrupt palette, for example
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    return result


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of gray; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")
