"""Damaged and hostile image files, repeatable from a seed: valid files of every kind with bytes, blocks or fields changed."""

import random
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.helpers.image_files import encode, make_chunk, make_image

# Around the limits of sizes; the large ones are beyond them, so that a small file needs little memory.
SIZES = (0, 1, 8, 31, 32, 33, 40, 57, 64, 300, 1000, 3000, 20_000, 65_500, 65_535)
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x, y and their steps
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")


def valid_images() -> dict[str, bytes]:
    """Name -> a small file, in every format and mode that is decoded, and in some that must be refused."""
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
        "PNG interlaced": interlaced_png(rgb),
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
        "TIFF": encode(rgb, "TIFF", compression="tiff_lzw"),
    }


def interlaced_png(image: Image.Image) -> bytes:
    """An RGB image as an Adam7 PNG, which Pillow reads but doesn't write."""
    pixels = np.asarray(image)
    passes = (pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7)
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(make_chunk(*part) for part in parts)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes, of the format's fields or of any bytes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        structural = next(
            (edit for magic, edit in STRUCTURAL.items() if content.startswith(magic)), None
        )
        if structural and rng.random() < 0.6:
            content = structural(content, rng)
        else:
            content = rng.choice(BYTE_EDITS)(content, rng)
    return content


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    """Start and end of a block, mostly short."""
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 4, 16, 64, 1024)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 40)) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.choice((0, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[start:]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _duplicate(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _png(content: bytes, rng: random.Random) -> bytes:
    """A chunk with another length, name, header field or body and a valid checksum; or moved, repeated or left out."""
    chunks, position = [], 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunks.append(
            (content[position + 4 : position + 8], content[position + 8 : position + 8 + length])
        )
        position += 12 + length
    if not chunks:
        return _flip(content, rng)
    index = rng.randrange(len(chunks))
    name, body = chunks[index]
    parts = [make_chunk(*chunk) for chunk in chunks]
    kind = rng.randrange(7)
    if kind == 0 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = rng.randrange(7)
        header[field] = rng.choice(
            (*SIZES, 2**31 - 1, 2**32 - 1) if field < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255)
        )
        parts[0] = make_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    elif kind == 1:
        parts[index] = (
            struct.pack(">I", rng.choice((0, 1, len(body) + 1, 2**31 - 1, 2**32 - 1)))
            + parts[index][4:]
        )
    elif kind == 2:
        names = (
            b"IDAT",
            b"IHDR",
            b"PLTE",
            b"tRNS",
            b"IEND",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"eXIf",
            b"iTXt",
            b"zTXt",
            b"iCCP",
            b"prIv",
        )
        parts[index] = make_chunk(rng.choice(names), body)
    elif kind == 3:
        parts[index] = make_chunk(name, rng.choice((_flip, _truncate, _insert))(body, rng))
    elif kind == 4 and name == b"IDAT":  # valid compression of damaged, too few or too many rows
        try:
            rows = zlib.decompress(body)
        except zlib.error:
            rows = b""
        parts[index] = make_chunk(
            name, zlib.compress(rng.choice((_flip, _truncate, _duplicate))(rows, rng))
        )
    elif kind == 5:
        parts.insert(rng.randrange(len(parts) + 1), parts[index] * rng.choice((1, 1, 30)))
    else:
        del parts[index]
    return content[:8] + b"".join(parts)


def _jpeg(content: bytes, rng: random.Random) -> bytes:
    """A segment with another length, marker or content, frame fields, or a repeated, moved or missing segment."""
    starts = [match.start() for match in JPEG_MARKER.finditer(content)]
    if not starts:
        return _flip(content, rng)
    start = rng.choice(starts)
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    following = next((other for other in starts if other > start), len(content))
    segment, changed = content[start:end], bytearray(content)
    kind = rng.randrange(7)
    frames = [
        place
        for place in starts
        if content[place + 1] in (0xC0, 0xC1, 0xC2) and place + 19 < len(content)
    ]
    if kind <= 1 and frames:
        frame = frames[0]
        field = rng.randrange(5)
        if field < 2:
            struct.pack_into(">H", changed, frame + 5 + 2 * field, rng.choice(SIZES))
        elif field == 2:
            changed[frame + 1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))
        elif field == 3:  # precision, or the number of components
            changed[frame + rng.choice((4, 9))] = rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 255))
        else:  # number, sampling factors and table of a component
            changed[frame + 10 + rng.randrange(9)] = rng.choice(
                (0, 1, 2, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0xFF)
            )
    elif kind == 2 and start + 4 <= len(content):
        struct.pack_into(
            ">H", changed, start + 2, rng.choice((0, 1, 2, 3, len(segment), 1000, 0xFFFF))
        )
    elif kind == 3 and start + 1 < len(content):
        changed[start + 1] = rng.choice(
            (
                0x01,
                0xC0,
                0xC2,
                0xC4,
                0xCC,
                0xD0,
                0xD8,
                0xD9,
                0xDA,
                0xDB,
                0xDC,
                0xDD,
                0xE1,
                0xE2,
                0xFE,
            )
        )
    elif kind == 4:
        changed[start + 4 : end] = rng.choice((_flip, _insert, _delete))(
            content[start + 4 : end], rng
        )
    elif kind == 5:  # a scan with its data, or another segment
        place = rng.choice(starts)
        changed[place:place] = content[start:following] * rng.choice((1, 2, 30, 150))
    else:
        del changed[start:following]
    return bytes(changed)


def _webp(content: bytes, rng: random.Random) -> bytes:
    """The size of the file or of a chunk, a chunk's name, the size of the image, or the content."""
    chunks, position = [], 12
    while position + 8 <= len(content):
        chunks.append(position)
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    if not chunks:
        return _flip(content, rng)
    changed, chunk = bytearray(content), rng.choice(chunks)
    kind = rng.randrange(5)
    if kind == 0:
        struct.pack_into(
            "<I", changed, 4, rng.choice((0, 4, len(content), len(content) - 7, 2**32 - 1))
        )
    elif kind == 1:
        struct.pack_into(
            "<I", changed, chunk + 4, rng.choice((0, 1, 5, 10, len(content), 2**31, 2**32 - 1))
        )
    elif kind == 2:
        changed[chunk : chunk + 4] = rng.choice(
            (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"junk")
        )
    elif kind == 3 and len(content) > 32:  # fields of the frame or of the canvas
        changed[rng.randrange(20, 32)] = rng.randrange(256)
    else:
        changed[chunk + 8 :] = _flip(content[chunk + 8 :], rng)
    return bytes(changed)


def _bmp(content: bytes, rng: random.Random) -> bytes:
    """A field of the headers."""
    changed, place = bytearray(content), rng.choice((2, 10, 14, 18, 22, 26, 28, 30, 34, 46, 50))
    if place + 4 > len(content):
        return _flip(content, rng)
    if place in (26, 28):
        struct.pack_into("<H", changed, place, rng.choice((0, 1, 4, 8, 16, 24, 32, 64)))
    else:
        struct.pack_into(
            "<i",
            changed,
            place,
            rng.choice((*SIZES, -40, -1, 2, 3, 4, 6, 12, 108, 124, -(2**31), 2**31 - 1)),
        )
    return bytes(changed)


Edit = Callable[[bytes, random.Random], bytes]
BYTE_EDITS: tuple[Edit, ...] = (_flip, _flip, _truncate, _insert, _delete, _duplicate, _swap)
STRUCTURAL: dict[bytes, Edit] = {b"\xff\xd8": _jpeg, b"\x89PNG": _png, b"RIFF": _webp, b"BM": _bmp}
