"""Files that would take a decoder minutes or gigabytes, recognized by their structure before any decoder sees them.

Size in pixels and bytes bounds neither: a JPEG may go over all its pixels in any number of scans, and Pillow reads the parts
around the pixels one by one, even millions of them. So the parts are counted. Photographs stay far below each limit.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

MAX_SCANS = 100  # passes over all pixels of a JPEG; progressive ones have about 10
MAX_SCANNED = 2_000_000_000  # pixels x scans of a JPEG: 25 scans of 80 megapixels
MAX_COEFFICIENTS = 240_000_000  # pixels x components of a JPEG with several scans, which libjpeg keeps whole in 2 bytes each
MAX_HEADER = 4 * 2**20  # bytes of a JPEG before its first scan: metadata, profiles, previews
MAX_SEGMENTS = (
    1024  # parts of a JPEG; photographs have some dozens. Pillow copies all EXIF data for each
)
MAX_DEEP_PNG = 400_000_000  # bytes of 16-bit pixels: 61 megapixels of RGB; those of 8 bits are limited by their number
MAX_CHUNKS = 2**16  # parts of a PNG; libpng writes one per 8 KiB
MAX_METADATA = (
    16 * 2**20
)  # bytes of a PNG or WebP besides its pixels; Pillow holds several copies of them
MARKER = re.compile(
    rb"\xff[\x01-\xcf\xd8-\xfe]"
)  # no fill byte, stuffed zero or restart, none of which begins a part
FRAMES = (0xC0, 0xC1, 0xC2, 0xC3)  # markers of the header with size and components
SEQUENTIAL = (0xC0, 0xC1)  # those whose coefficients come whole, not in refinements
ARITHMETIC = (
    0xC9,
    0xCA,
    0xCB,
)  # those of a coding that no camera writes, ten times slower than Huffman's
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
STANDALONE_MARKERS = (0x01, 0xD8)  # markers without a length behind them
RUN_LENGTH_BMP = (1, 2)  # kinds of compression that Pillow undoes step by step
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
PIXEL_CHUNKS = (
    b"IDAT",
    b"fdAT",
    b"VP8 ",
    b"VP8L",
    b"ALPH",
    b"ANMF",
)  # of PNG and WebP, also of animations


def decode_cost_violation(content: bytes) -> str:
    """Why this file must not be decoded, or "". Doesn't examine files of other formats, or corrupt ones."""
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _deep_png_violation(content) or _chunks_violation(content, 8, "big")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _chunks_violation(content, 12, "little")
    if (
        content.startswith(b"BM")
        and len(content) > 34
        and struct.unpack_from("<I", content, 30)[0] in RUN_LENGTH_BMP
    ):
        return "run-length encoded BMP"
    return ""


def _jpeg(content: bytes) -> str:
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
                return ""  # all there is in one scan: the decoder takes no second one, and most photographs are done here
            scans += 1
            if scans > MAX_SCANS:
                return f"more than {MAX_SCANS} scans"
            if pixels * scans > MAX_SCANNED or pixels * components > MAX_COEFFICIENTS:
                return f"{pixels} pixels of {components} components in {scans} or more scans"
    return (
        ""
        if scans or len(content) <= MAX_HEADER
        else f"more than {MAX_HEADER // 2**20} MiB before the first scan"
    )


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position behind it of each part of the first image; not of what follows it, such as a phone's video."""
    position = 2
    while found := MARKER.search(content, position):
        kind, position = content[found.start() + 1], found.end()
        if kind == END_OF_IMAGE:
            return
        yield kind, position
        if kind not in STANDALONE_MARKERS:
            position += int.from_bytes(content[position : position + 2], "big")


def _deep_png_violation(content: bytes) -> str:
    if len(content) < 26 or content[24] != 16:
        return ""
    width, height, depth, color_type = struct.unpack_from(
        ">IIBB", content, 16
    )  # of the header, which comes first
    size = width * height * PNG_CHANNELS.get(color_type, 1) * depth // 8
    return f"{size // 10**6} MB of 16-bit pixels" if size > MAX_DEEP_PNG else ""


def _chunks_violation(content: bytes, position: int, byteorder: Literal["big", "little"]) -> str:
    """Counts the chunks of a PNG (length, name, body, checksum) or WebP (name, length, body, padding)."""
    png = byteorder == "big"
    metadata = 0
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return ""
        first, second = content[position : position + 4], content[position + 4 : position + 8]
        name, length = (
            (second, int.from_bytes(first, "big"))
            if png
            else (first, int.from_bytes(second, "little"))
        )
        if name not in PIXEL_CHUNKS:
            metadata += min(length, len(content) - position)
            if metadata > MAX_METADATA:
                return f"more than {MAX_METADATA // 2**20} MiB of metadata"
        position += 12 + length if png else 8 + length + length % 2
    return f"more than {MAX_CHUNKS} parts"
