"""One file's bytes -> a small upright RGB image, or the reason why not. The bytes are untrusted.

The JPEG decoder itself reduces an image to 1/2, 1/4 or 1/8 of its size, by the means of whole
blocks. It is used down to 1.5 times the target size; a bicubic filter does the rest.
"""

import io
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from stages.photographs.crops import CropBox, find_crop
from stages.photographs.file_limits import decode_cost_violation
from stages.photographs.stains import estimate_stain

# Every further decoder could be reached by hostile bytes. TIFF is read without libtiff.
USUAL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # that a message suggests
FORMATS = (*USUAL_FORMATS, "TIFF", "AVIF")
OTHER_FORMATS = {  # how files of formats that are not read begin -> what they are, and the way out
    rb"GIF8": "GIF: save it as PNG",
    rb"II.\0|MM\0.|FUJIFILM": "a kind of TIFF or a camera's raw file: save it as PNG or JPEG",
    rb".{4}ftyp(hei|hev|mif1|msf1)": "HEIC: convert it to JPEG, for example with heif-convert",
    rb".{128}DICM": "DICOM: convert it to PNG, for example with dcm2img of DCMTK",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000: save it as PNG or JPEG",
}
MAX_PIXELS = 80_000_000  # below the size from which Pillow itself warns of a decompression bomb
# Pillow needs three times the file and 22 bytes per pixel for WebP, and about as much for AVIF.
MAX_PIXELS_OF = {"WEBP": 25_000_000, "AVIF": 25_000_000}
MIN_SIDE = 32  # pixels: smaller images are icons and previews
MAX_ELONGATION = 16  # longer side / shorter side; beyond any panorama
THUMBNAIL = 64  # pixels, side of the gray image by which duplicates are found
OVERSAMPLE = 1.5  # smallest reduction that is left to the final filter; crops need twice that
MIN_CONTRAST = 16  # of 255: in some channel, largest minus smallest value of a photograph
DEPTHS = (8, 10, 12, 14, 16)  # bits of which the values in 16-bit files make use
MAX_PROFILE = 4 * 2**20  # bytes of a color profile; larger ones are ignored
MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # color space of a profile -> Pillow's
GRAY_BANDS = ("1", "L", "I")  # Pillow's names of a gray channel: of 1, 8 and more bits
STRIP = 256  # rows that are converted at once, so that there is no second full-size image
ORIENTATION = 0x0112  # EXIF tag
# Value of the tag -> what makes the image upright. PIL.ImageOps.exif_transpose would also rewrite
# the EXIF data, which may fail where they are corrupt.
EXIF_TRANSPOSE = {
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


def decode_image(content: bytes, size: int, crop: str) -> DecodedImage:
    """Decode, apply the EXIF orientation, crop and resize.

    Args:
        content: of the file.
        size: of the result, size x size pixels.
        crop: none, square or cervix.

    Raises:
        ImageDecodeError: when the bytes give no usable image.
    """
    min_side = size * (2 * OVERSAMPLE if crop == "cervix" else OVERSAMPLE)
    image, original, mode = decode_and_orient(content, min_side)
    if np.ptp(image.getextrema(), axis=1).max() < MIN_CONTRAST:  # of channels: (smallest, largest)
        raise ImageDecodeError(
            "blank: hardly any contrast (transparent, or few of 16 bits per channel are used?)"
        )
    crop_box = find_crop(image, crop)
    width, height = image.size
    box = (
        crop_box.left * width,
        crop_box.top * height,
        crop_box.right * width,
        crop_box.bottom * height,
    )
    # reducing_gap: means of blocks come first here, too. Several times as fast as a wide filter.
    pixels = np.asarray(
        image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=OVERSAMPLE)
    )
    thumbnail = image.convert("L").resize(
        (THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0
    )
    return DecodedImage(
        pixels, np.asarray(thumbnail), *original, mode, estimate_stain(pixels), crop_box
    )


def decode_and_orient(content: bytes, min_side: float) -> tuple[Image.Image, tuple[int, int], str]:
    """Decode the whole image.

    Args:
        content: of the file.
        min_side: pixels of the shorter side from which the decoder may reduce the image.

    Returns:
        The upright image in sRGB, the upright original's size, format and mode of the file.

    Raises:
        ImageDecodeError: when the bytes give no usable image.
    """
    with warnings.catch_warnings():
        # Of metadata, palettes, and bombs, which are refused at a lower limit than Pillow's.
        warnings.simplefilter("ignore")
        file = _open_valid(content)
        original, mode = file.size, f"{file.format} {file.mode}"
        _load(file, min_side, len(content))
        # After the pixels: Pillow decodes a PNG when it looks for metadata behind the pixels, and
        # errors in them would then go unnoticed.
        orientation = _read_orientation(file)
        bits = _used_bits(file)
        if bits < DEPTHS[-1]:
            mode += f" with values of {bits} bits"
        image = _to_srgb(file, bits)
    if orientation in EXIF_TRANSPOSE:
        image = image.transpose(EXIF_TRANSPOSE[orientation])
        original = original[::-1] if orientation >= 5 else original
    return image, original, mode


def _open_valid(content: bytes) -> ImageFile.ImageFile:
    """The image, not decoded yet; ImageDecodeError for what must not be decoded."""
    if not content:
        raise ImageDecodeError("empty: 0 bytes")
    if costly := decode_cost_violation(content):
        raise ImageDecodeError(f"too costly: {costly}")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageDecodeError(_other_format(content)) from None
    except Image.DecompressionBombError:
        raise ImageDecodeError(f"too large: more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow raises nearly every kind of exception for corrupt files
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    width, height = image.size
    if width * height > MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS):
        raise ImageDecodeError(f"too large: {width} x {height} pixels")
    if min(width, height) < MIN_SIDE:
        raise ImageDecodeError(f"too small: {width} x {height} pixels")
    if max(width, height) > MAX_ELONGATION * min(width, height):
        raise ImageDecodeError(f"too elongated: {width} x {height} pixels")
    # Phones add a second image (depth, preview) to an MPO file; the first one is the photograph.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageDecodeError(f"animated: {frames} images")
    return image


def _other_format(content: bytes) -> str:
    for beginning, remedy in OTHER_FORMATS.items():
        if re.match(beginning, content[:256], re.DOTALL):
            return f"other format: {remedy}"
    return f"not an image: expected {', '.join(USUAL_FORMATS)}"


def _load(image: ImageFile.ImageFile, min_side: float, file_size: int) -> None:
    """Decode the pixels, reduced where the format can."""
    width, height = (math.ceil(side * min_side / min(image.size)) for side in image.size)
    try:
        image.draft(None, (width, height))
        image.decodermaxblock = file_size  # in one go, not in blocks of 64 KiB
        image.load()
    except Exception as error:
        if "truncated" not in str(error).lower():
            raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
        # A PNG without tiles to decode has all its pixels: only metadata behind them are missing.
        if image.format != "PNG" or image.tile:
            raise ImageDecodeError("truncated: the end of the pixels is missing") from None


def _read_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # corrupt metadata doesn't spoil the image
        return 1


def _used_bits(image: Image.Image) -> int:
    """Of 16-bit gray: by the largest value; cameras store 10 or 12 bits in such files."""
    if not image.mode.startswith("I"):
        return DEPTHS[-1]
    width, height = image.size
    strips = (
        image.crop((0, top, width, min(top + STRIP, height))) for top in range(0, height, STRIP)
    )
    largest = max(int(np.asarray(strip).max()) for strip in strips)
    return next((bits for bits in DEPTHS if largest < 2**bits), DEPTHS[-1])


def _to_srgb(image: Image.Image, bits: int) -> Image.Image:
    """8-bit sRGB: deeper gray is scaled, transparent pixels become black, all else is converted."""
    transform = _color_transform(image)
    if image.mode == "RGB" and "transparency" not in image.info and not transform:
        return image
    width, height = image.size
    result = Image.new("RGB", image.size)
    try:
        for top in range(0, height, STRIP):
            strip = image.crop((0, top, width, min(top + STRIP, height)))
            result.paste(_strip_to_srgb(strip, bits, transform), (0, top))
    except Exception as error:  # a corrupt palette, for example
        raise ImageDecodeError(f"unreadable: {type(error).__name__}") from None
    return result


def _strip_to_srgb(
    image: Image.Image, bits: int, transform: ImageCms.ImageCmsTransform | None
) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip at 255
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray((values * 255 // (2**bits - 1)).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if transform:
        return transform.apply(image.convert(transform.input_mode))
    return image.convert("RGB")


def _color_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the space of the file's color profile, such as Display P3 of phones, to sRGB.

    None where nothing is to be done: without a profile, for sRGB, and for a profile that is corrupt
    or of another kind than the image.
    """
    content = image.info.get("icc_profile")
    if not content or len(content) > MAX_PROFILE:
        return None
    band = image.getbands()[0]
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        fits = {"RGB": True, "GRAY": band in GRAY_BANDS, "CMYK": image.mode == "CMYK"}
        if "sRGB" in ImageCms.getProfileDescription(profile) or not fits.get(space):
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(profile, target, MODE_OF_SPACE[space], "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
