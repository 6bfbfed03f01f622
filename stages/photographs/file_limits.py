"""Files that would take a decoder minutes or gigabytes, recognized before any decoder sees them.

Size in pixels and bytes bounds neither: a JPEG may go over all its pixels in any number of scans,
and Pillow reads the parts around the pixels one by one, even millions of them. So the parts are
counted. Photographs stay far below each limit.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

# JPEG
MAX_SCANS = 100  # passes over all pixels; progressive photographs have about 10
MAX_SCANNED = 2_000_000_000  # pixels x scans: 25 scans of 80 megapixels
MAX_COEFFICIENTS = 240_000_000  # pixels x components; with several scans libjpeg keeps them in RAM
MAX_HEADER = 4 * 2**20  # bytes before the first scan: metadata, profiles, previews
MAX_SEGMENTS = 1024  # Pillow copies all EXIF data for each of them; photographs have some dozens
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a segment: no fill byte, zero or restart
STANDALONE_MARKERS = (0x01, 0xD8)  # without a length behind them
FRAMES = (0xC0, 0xC1, 0xC2, 0xC3)  # markers of the header with size and components
SEQUENTIAL = (0xC0, 0xC1)  # those whose coefficients come whole, not in refinements
ARITHMETIC = (0xC9, 0xCA, 0xCB)  # coded as by no camera, and decoded ten times more slowly
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# PNG and WebP
MAX_DEEP_PNG = 400_000_000  # bytes of 16-bit pixels: 61 megapixels of RGB
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
MAX_CHUNKS = 2**16  # libpng writes one per 8 KiB
MAX_METADATA = 16 * 2**20  # bytes besides the pixels; Pillow holds several copies of them
PIXEL_CHUNKS = (b"IDAT", b"fdAT", b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
# TIFF
TIFF_MAGIC = {b"II*\0": "<", b"MM\0*": ">"}  # -> order of bytes
UNCOMPRESSED = 1  # all else is decoded by libtiff, which prints what it finds to the terminal
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # by type
SUBFILE, COMPRESSION, SUB_IFDS = 254, 259, 330  # tags
# BMP
RUN_LENGTH = (1, 2)  # kinds of compression that Pillow undoes step by step


def decode_cost_violation(content: bytes) -> str:
    """Why this file must not be decoded, or "".

    Files of other formats and corrupt ones are not examined.
    """
    if content.startswith(b"\xff\xd8"):
        return _jpeg_violation(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _deep_png_violation(content) or _chunks_violation(content, 8, "big")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _chunks_violation(content, 12, "little")
    if content[:4] in TIFF_MAGIC:
        return _tiff_violation(content, TIFF_MAGIC[content[:4]])
    if content.startswith(b"BM") and int.from_bytes(content[30:34], "little") in RUN_LENGTH:
        return "run-length encoded BMP"
    return ""


def _jpeg_violation(content: bytes) -> str:
    scans, pixels, components, sequential = 0, 0, 0, False
    for number, (kind, start) in enumerate(_jpeg_segments(content)):
        if number == MAX_SEGMENTS:
            return f"more than {MAX_SEGMENTS} parts"
        if not scans and start > MAX_HEADER:
            break
        if kind in ARITHMETIC:
            return "arithmetic coding"
        if kind in FRAMES and len(content) >= start + 8:
            height, width, components = struct.unpack_from(">HHB", content, start + 3)
            pixels, sequential = width * height, kind in SEQUENTIAL
        elif kind == START_OF_SCAN:
            if sequential and content[start + 2 : start + 3] == bytes([components]):
                return ""  # all components in one scan, after which the decoder takes no other
            scans += 1
            if scans > MAX_SCANS:
                return f"more than {MAX_SCANS} scans"
            if pixels * scans > MAX_SCANNED or pixels * components > MAX_COEFFICIENTS:
                return f"{pixels} pixels of {components} components in {scans} or more scans"
    violation = f"more than {MAX_HEADER // 2**20} MiB before the first scan"
    return violation if not scans and len(content) > MAX_HEADER else ""


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker, and position behind it, of each segment up to the end of the first image."""
    position = 2
    while match := MARKER.search(content, position):
        kind, position = content[match.start() + 1], match.end()
        if kind == END_OF_IMAGE:
            return
        yield kind, position
        if kind not in STANDALONE_MARKERS:
            position += int.from_bytes(content[position : position + 2], "big")


def _deep_png_violation(content: bytes) -> str:
    if len(content) < 26 or content[24] != 16:
        return ""
    width, height, depth, color_type = struct.unpack_from(">IIBB", content, 16)
    size = width * height * PNG_CHANNELS.get(color_type, 1) * depth // 8
    return f"{size // 10**6} MB of 16-bit pixels" if size > MAX_DEEP_PNG else ""


def _chunks_violation(content: bytes, position: int, byteorder: Literal["big", "little"]) -> str:
    """Count the chunks of a PNG or WebP file.

    A chunk of a PNG is length, name, body, checksum; of a WebP name, length, body, padding.
    """
    is_png = byteorder == "big"
    metadata = 0
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return ""
        first, second = content[position : position + 4], content[position + 4 : position + 8]
        name, length_field = (second, first) if is_png else (first, second)
        length = int.from_bytes(length_field, byteorder)
        if name not in PIXEL_CHUNKS:
            metadata += min(length, len(content) - position)
            if metadata > MAX_METADATA:
                return f"more than {MAX_METADATA // 2**20} MiB of metadata"
        position += 12 + length if is_png else 8 + length + length % 2
    return f"more than {MAX_CHUNKS} parts"


def _tiff_violation(content: bytes, order: str) -> str:
    directory = _tiff_directory(content, order)
    if directory is None:
        return ""
    numbers, size, following = directory
    if size > MAX_METADATA:
        return f"more than {MAX_METADATA // 2**20} MiB of metadata"
    if following or SUB_IFDS in numbers or numbers.get(SUBFILE, 0) & 1:
        return "TIFF of several images, as raw files of cameras are: save one as PNG"
    if numbers.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
        return "compressed TIFF, save it as PNG or uncompressed"
    return ""


def _tiff_directory(content: bytes, order: str) -> tuple[dict[int, int], int, int] | None:
    """First number of each tag, bytes of all tags, and where a second directory is; None if cut."""
    if len(content) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    if start + 2 > len(content):
        return None
    (count,) = struct.unpack_from(f"{order}H", content, start)
    end = start + 2 + 12 * count
    if end + 4 > len(content):
        return None
    numbers, size = {}, 0
    for position in range(start + 2, end, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", content, position)
        size += length * TIFF_SIZES.get(kind, 0)
        number = "H" if kind == 3 else "I"
        (numbers[tag],) = struct.unpack_from(order + number, content, position + 8)
    return numbers, size, struct.unpack_from(f"{order}I", content, end)[0]
