"""Files that are made to take a decoder minutes are rejected undecoded; the files that cameras write are not."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.photographs.decoding import ImageDecodeError, decode_image
from stages.photographs.file_limits import decode_cost_violation
from tests.helpers.image_files import encode, make_image

PROGRESSIVE = encode(make_image(0), progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
BASELINE, PNG = encode(make_image(0)), encode(make_image(0), "PNG")
EXPENSIVE = {
    "many scans": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN + PROGRESSIVE[-2:], "more than 100 scans"),
    "many scans without end": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN, "more than 100 scans"),
    "many comments": (BASELINE[:2] + 2**21 * b"\xff\xfe\x00\x02" + BASELINE[2:], "more than 4 MiB before the first scan"),
    "fill bytes": (BASELINE[:2] + 2**23 * b"\xff" + BASELINE[2:], "more than 4 MiB before the first scan"),
    "fill bytes only": (BASELINE[:2] + 2**23 * b"\xff", "more than 4 MiB before the first scan"),
    "many chunks": (
        PNG[:33] + 2**17 * (b"\0\0\0\0exAm" + zlib.crc32(b"exAm").to_bytes(4, "big")) + PNG[33:],
        "more than 65536 parts",
    ),
    "run lengths": (
        b"BM" + struct.pack("<III", 54, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 99, 99, 1, 8, 1, 0, 0, 0, 0, 0) + bytes(2**20),
        "run-length encoded BMP",
    ),
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_expensive_file_is_rejected_undecoded(name, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    content, violation = EXPENSIVE[name]
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(content, 32, "square", usable_part=1)
    assert str(caught.value) == f"too costly: {violation}"


def test_camera_files_are_within_limits():
    def pixels(content):
        return decode_image(content, 32, "none", usable_part=1).pixels

    video = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes() + 200 * b"\xff\xda\0\2"
    assert pixels(PROGRESSIVE).shape == (32, 32, 3)
    for content in (BASELINE + video, encode(make_image(0), exif=b"Exif\0\0" + 200 * b"\xff\xda\xff\xd9")):
        np.testing.assert_array_equal(pixels(content), pixels(BASELINE))
    assert decode_cost_violation(PROGRESSIVE[:-2] + 90 * LAST_SCAN) == ""
