"""Damaged and hostile image files, repeatable from a seed."""

import contextlib
import itertools
import random
import re
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image

from tests.helpers.image_files import encode, make_chunk, make_image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Columns and rows of the passes of interlacing: first x, first y, step of x, step of y.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4))
ADAM7 += ((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHUNKS = tuple(b"IDAT IHDR PLTE tRNS IEND acTL fdAT eXIf zTXt iCCP".split())
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
# Numbers of pixels around the limits, then of bits, components, bytes and markers. The large ones
# are beyond the limits, so that a small file needs little memory.
VALUES = (0, 1, 8, 31, 32, 33, 40, 57, 64, 300, 1000, 3000, 20_000, 65_500, 2**16 - 1, 2**32 - 1)
VALUES += (2, 3, 4, 6, 12, 16, 0x11, 0x22, 0x41, 0xC2, 0xC9, 0xD9, 0xDA, 0xE1, 0xFF, 2**31 - 1)
STARTS = (0, 0, 0, 1, 1, 2, 4, 5, 7, 8, 9, 14)  # of fields in the parts of most formats


def valid_images() -> dict[str, bytes]:
    """Name -> a small file, in every format and mode that is decoded, and some to be refused."""
    rgb = make_image(0, 57, 43)
    gray, alpha = rgb.convert("L"), make_image(1, 57, 43).convert("L")
    rgba, palette, exif = rgb.copy(), rgb.quantize(16), Image.Exif()
    rgba.putalpha(alpha)
    exif[0x0112], exif[0x010E] = 6, "description"
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [make_image(2, 57, 43)]}
    return {
        "JPEG": encode(rgb),
        "JPEG 4:4:4": encode(rgb, subsampling=0),
        "JPEG 4:2:2, restarts": encode(rgb, subsampling=1, restart_marker_rows=1),
        "JPEG progressive": encode(rgb, progressive=True),
        "JPEG gray": encode(gray),
        "JPEG gray progressive": encode(gray, progressive=True),
        "JPEG CMYK": encode(rgb.convert("CMYK")),
        "JPEG CMYK progressive": encode(rgb.convert("CMYK"), progressive=True),
        "JPEG with EXIF": encode(rgb, exif=exif, comment=b"comment", icc_profile=bytes(200)),
        "MPO": encode(rgb, "MPO", **frames),
        "AVIF": encode(rgb, "AVIF"),
        "PNG": encode(rgb, "PNG"),
        "PNG with EXIF and text": encode(
            rgb, "PNG", exif=exif, dpi=(72, 72), icc_profile=bytes(200)
        ),
        "PNG transparent color": encode(rgb, "PNG", transparency=(90, 100, 110)),
        "PNG alpha": encode(rgba, "PNG"),
        "PNG gray": encode(gray, "PNG"),
        "PNG gray alpha": encode(rgba.convert("LA"), "PNG"),
        "PNG 1 bit": encode(gray.convert("1"), "PNG"),
        "PNG 16 bits": encode(deep, "PNG"),
        "PNG palette": encode(palette, "PNG"),
        "PNG palette, 2 bits": encode(rgb.quantize(4), "PNG", bits=2),
        "PNG palette, transparency": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "PNG interlaced": _interlaced_png(rgb),
        "PNG animated": encode(rgb, "PNG", **frames),
        "WEBP": encode(rgb, "WEBP"),
        "WEBP lossless": encode(rgb, "WEBP", lossless=True, exif=exif),
        "WEBP alpha": encode(rgba, "WEBP"),
        "WEBP lossless alpha": encode(rgba, "WEBP", lossless=True),
        "WEBP animated": encode(rgb, "WEBP", **frames),
        "BMP": encode(rgb, "BMP"),
        "BMP 1 bit": encode(gray.convert("1"), "BMP"),
        "BMP gray": encode(gray, "BMP"),
        "BMP palette": encode(palette, "BMP"),
        "BMP 32 bits": encode(rgba, "BMP"),
        "GIF": encode(rgb, "GIF"),
        "TIFF": encode(rgb, "TIFF"),
        "TIFF compressed": encode(rgb, "TIFF", compression="tiff_lzw"),
    }


def _interlaced_png(image: Image.Image) -> bytes:
    """An RGB image as an Adam7 PNG, which Pillow reads but doesn't write."""
    pixels = np.asarray(image)
    passes = (pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7)
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return PNG_MAGIC + b"".join(make_chunk(*part) for part in parts)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes, of the format's parts and fields or of any bytes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice((_edit_bytes, _edit_parts, _edit_parts))(content, rng)
    return content


def _edit_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut off the end, or replace a block, mostly a short one: delete, change, insert or repeat."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 2, 4, 16, 64, 1024)))
    block, other = content[start:end], rng.randbytes(end - start)
    replacements = (b"", other, other, bytes(len(block)), block + other, block * 2, block * 50)
    return content[:start] + rng.choice((b"", *(new + content[end:] for new in replacements)))


def _edit_parts(content: bytes, rng: random.Random) -> bytes:
    """Delete, repeat, move or change one of the parts of a file."""
    parts = _split(content)
    index, kind = rng.randrange(len(parts)), rng.randrange(8)
    part = parts.pop(index)
    if kind == 0:
        pass
    elif kind == 1:
        parts[index:index] = [part] * rng.choice((2, 3, 30, 150))
    elif kind == 2:
        parts.insert(rng.randrange(len(parts) + 1), part)
    elif content.startswith(PNG_MAGIC) and index:
        parts.insert(index, _edit_chunk(part, rng))
    elif kind < 6:
        big_endian = content.startswith((b"\xff\xd8", PNG_MAGIC))
        parts.insert(index, _edit_field(part, rng, "big" if big_endian else "little"))
    else:
        parts.insert(index, _edit_bytes(part, rng))
    return b"".join(parts)


def _split(content: bytes) -> list[bytes]:
    """Segments of a JPEG, chunks of a PNG or WebP file, otherwise header fields as of a BMP."""
    cuts, position = [], 0
    if content.startswith(b"\xff\xd8"):
        cuts = [match.start() for match in JPEG_MARKER.finditer(content)]
    elif content.startswith(PNG_MAGIC):
        position = 8
        while position + 8 < len(content):
            cuts.append(position)
            position += 12 + int.from_bytes(content[position : position + 4], "big")
    elif content.startswith(b"RIFF"):
        position = 12
        while position + 8 < len(content):
            cuts.append(position)
            length = int.from_bytes(content[position + 4 : position + 8], "little")
            position += 8 + length + length % 2
    else:
        cuts = [cut for cut in range(2, 58, 4) if cut < len(content)]
    return [content[start:end] for start, end in itertools.pairwise([0, *cuts, len(content)])]


def _edit_field(part: bytes, rng: random.Random, byteorder: Literal["big", "little"]) -> bytes:
    """Another number near the beginning, where names, lengths and sizes are."""
    width, start = rng.choice((1, 2, 4)), rng.choice(STARTS)
    value = rng.choice(VALUES) % 256**width
    return part[:start] + value.to_bytes(width, byteorder) + part[start + width :]


def _edit_chunk(chunk: bytes, rng: random.Random) -> bytes:
    """A changed chunk of a PNG file, in most cases with a valid checksum."""
    name, body = chunk[4:8], chunk[8:-4]
    kind = rng.randrange(5)
    if kind == 0:
        return _edit_field(chunk, rng, "big")
    if kind == 1 and name == b"IDAT":  # valid compression of damaged, too few or too many rows
        with contextlib.suppress(zlib.error):
            return make_chunk(name, zlib.compress(_edit_bytes(zlib.decompress(body), rng)))
    if kind == 2:
        return make_chunk(rng.choice(CHUNKS), body)
    return make_chunk(name, _edit_field(body, rng, "big") if kind == 3 else _edit_bytes(body, rng))
