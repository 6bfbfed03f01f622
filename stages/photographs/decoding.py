"""One file's bytes -> a small upright RGB picture, or the reason why not. The bytes are untrusted.

JPEG is decoded at 1/2, 1/4 or 1/8 of its size inside the decoder, which takes the mean of whole blocks, down to no less than
1.5 times the size that is wanted; a bicubic filter as wide as the remaining reduction does the rest.
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

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # each decoder more is one more that hostile bytes can reach
MAX_PIXELS = 80_000_000  # below the size at which Pillow itself warns of a decompression bomb
MIN_SIDE = 32  # pixels: smaller ones are icons and previews
THUMBNAIL = 64  # pixels, side of the grey picture that duplicates are found with
OVERSAMPLE = 1.5  # least reduction that is left to the final filter; twice that where a region is yet to be cut out
MCU = 16  # pixels: the most rows that one row of JPEG blocks covers
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # value of the tag -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodeError(ValueError):
    """The file gives no usable photograph; the message is "kind: detail"."""


@dataclass(frozen=True)
class Photograph:
    """A photograph cut to size.

    pixels: uint8 (size, size, 3), RGB; thumbnail: uint8 (64, 64), grey, the whole picture stretched to a square;
    width, height: of the upright original; mode: what the file held, such as JPEG RGB; stain: a guess by colour; region: what
    was cut out.
    """

    pixels: np.ndarray
    thumbnail: np.ndarray
    width: int
    height: int
    mode: str
    stain: str
    region: CropBox


def decode_image(content: bytes, size: int, crop: str, usable_part: float) -> Photograph:
    """Decode, turn upright, cut (`crop`: none, square or cervix) and reduce to size x size pixels.

    usable_part: a truncated file is accepted with at least this share of its rows, 1 accepts whole files only.
    Raises ImageDecodeError.
    """
    least = size * (2 * OVERSAMPLE if crop == "cervix" else OVERSAMPLE)
    picture, original, mode = upright(content, least, usable_part)
    region = find_crop(picture, crop)
    width, height = picture.size
    box = (region.left * width, region.top * height, region.right * width, region.bottom * height)
    # As in the decoder, means of whole blocks come first as far as they may: several times faster than a wide filter.
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=OVERSAMPLE))
    thumbnail = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return Photograph(pixels, np.asarray(thumbnail), *original, mode, estimate_stain(pixels), region)


def upright(content: bytes, least: float, usable_part: float) -> tuple[Image.Image, tuple[int, int], str]:
    """The whole picture in RGB, its shorter side reduced to no less than `least`; the original's size; format and mode.

    Raises ImageDecodeError.
    """
    with warnings.catch_warnings():
        # About metadata and the palette; a bomb is refused below, at a lower limit than Pillow warns from.
        warnings.simplefilter("ignore")
        picture, original, mode, orientation = _decode(content, least, usable_part)
        picture = _rgb(picture)
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
        original = original[::-1] if orientation >= 5 else original
    return picture, original, mode


def _open(content: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _decode(content: bytes, least: float, usable_part: float) -> tuple[Image.Image, tuple[int, int], str, int]:
    """The pixels, the size before any reduction, format and mode, EXIF orientation (1..8)."""
    if not content:
        raise ImageDecodeError("empty: 0 bytes")
    if costly := decode_cost_violation(content):
        raise ImageDecodeError(f"too costly: {costly}")
    # Pillow answers broken files with nearly every kind of exception, and decoders of other people's bytes are the one place
    # where each of them means the same: this file is no photograph.
    try:
        image = _open(content)
    except UnidentifiedImageError:
        raise ImageDecodeError(f"not an image: expected {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageDecodeError(f"too large: more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    original, mode = image.size, f"{image.format} {image.mode}"
    if math.prod(original) > MAX_PIXELS:
        raise ImageDecodeError(f"too large: {original[0]} x {original[1]} pixels")
    if min(original) < MIN_SIDE:
        raise ImageDecodeError(f"too small: {original[0]} x {original[1]} pixels")
    # Phones put a second picture (depth, preview) into an MPO file; the first is the photograph.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageDecodeError(f"animated: {image.n_frames} pictures")
    orientation = _orientation(image)
    scaled = (math.ceil(original[0] * least / min(original)), math.ceil(original[1] * least / min(original)))
    try:
        image.draft(None, scaled)
        image.decodermaxblock = len(content)  # in one go, not in 64 KiB
        image.load()
    except Exception as error:
        if "truncated" not in str(error).lower():
            raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    else:
        return image, original, mode, orientation
    image, part = _usable_rows(content, scaled)
    if part < usable_part or usable_part == 1 or part * original[1] < MIN_SIDE:
        raise ImageDecodeError(f"truncated: {part:.0%} of the rows usable")
    return image, (original[0], round(original[1] * part)), mode, orientation


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata doesn't spoil the picture
        return 1
    return value if value in UPRIGHT else 1


def _usable_rows(content: bytes, scaled: tuple[int, int]) -> tuple[Image.Image, float]:
    """The upper part of a truncated picture that was decoded, and its share of the height.

    The decoder leaves one flat colour where data are missing. Interlaced and progressive files spread the damage over all
    rows: nothing of them counts as usable.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = _open(content)
        image.draft(None, scaled)
        whole_height = image.height
        image.load()
        rows = np.asarray(image).reshape(whole_height, image.width, -1)
    except Exception as error:
        raise ImageDecodeError(f"truncated: {type(error).__name__}") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if image.format not in ("JPEG", "MPO", "PNG") or image.info.get("progressive") or image.info.get("interlace"):
        return image, 0.0
    decoded = np.flatnonzero((rows != rows[-1, -1]).any(axis=(1, 2)))
    # The last row of blocks is only partly there.
    usable = max(0, int(decoded[-1]) + 1 - MCU) if len(decoded) else 0
    return image.crop((0, 0, image.width, max(usable, 1))), usable / whole_height


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by rule: 16-bit grey is scaled, transparency goes on black, all else is converted."""
    try:
        if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return image.convert("RGB")
    except Exception as error:  # a broken palette, for example
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
