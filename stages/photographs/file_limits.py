"""Files that would take a decoder minutes or more, recognized by their structure before any decoder sees them.

Size in pixels and bytes doesn't bound the time: a JPEG may go over all its pixels in any number of scans, and Pillow reads the
parts before the pixels one by one, even millions of them. So the parts are counted. Photographs stay far below each limit.
"""

import re
import struct

MAX_SCANS = 100  # passes over all pixels of a JPEG; progressive ones have about 10
MAX_HEADER = 4 * 2**20  # bytes of a JPEG before its first scan: metadata, profiles, previews
MAX_CHUNKS = 2**16  # parts of a PNG; libpng writes one per 8 KiB
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no fill byte, stuffed zero or restart, none of which begins a part
SEQUENTIAL = (0xC0, 0xC1)  # markers of a frame whose coefficients come whole, not in refinements
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
STANDALONE_MARKERS = (0x01, 0xD8)  # markers without a length behind them
RUN_LENGTH_BMP = (1, 2)  # kinds of compression that Pillow undoes step by step


def decode_cost_violation(content: bytes) -> str:
    """Why this file must not be decoded, or "". Doesn't examine files of other formats, or corrupt ones."""
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content)
    if content.startswith(b"BM") and len(content) > 34 and struct.unpack_from("<I", content, 30)[0] in RUN_LENGTH_BMP:
        return "run-length encoded BMP"
    return ""


def _jpeg(content: bytes) -> str:
    """Follows the markers of the first image; what comes behind it, such as a phone's video, isn't looked at."""
    scans, position, components = 0, 2, None
    while found := MARKER.search(content, position):
        kind, start = content[found.start() + 1], found.end()
        position = start
        if not scans and position > MAX_HEADER:
            break
        if kind == END_OF_IMAGE:
            return ""
        if kind not in STANDALONE_MARKERS:
            position += int.from_bytes(content[position : position + 2], "big")
        if kind in SEQUENTIAL:
            components = content[start + 7 : start + 8]
        elif kind == START_OF_SCAN:
            if content[start + 2 : start + 3] == components:
                return ""  # all there is in one scan: the decoder takes no second one, and most photographs are done here
            scans += 1
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
    return "" if scans or len(content) <= MAX_HEADER else f"more than {MAX_HEADER // 2**20} MiB before the first scan"


def _png(content: bytes) -> str:
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return ""
        position += 12 + int.from_bytes(content[position : position + 4], "big")  # length, name, content, checksum
    return f"more than {MAX_CHUNKS} parts"
