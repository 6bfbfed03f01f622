"""Files made to take a decoder minutes are rejected undecoded; those of cameras are not."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.photographs.decoding import ImageDecodeError, decode_image
from stages.photographs.file_limits import decode_cost_violation
from tests.helpers.image_files import encode, make_chunk, make_image, make_png, resize_jpeg
from tests.helpers.repository import ROOT

BASELINE, PNG = encode(make_image(0)), encode(make_image(0), "PNG")
PROGRESSIVE = encode(make_image(0), progressive=True)
CMYK = encode(make_image(0).convert("CMYK"), progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
BMP_HEADER = struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 99, 99, 1, 8, 1, 0, 0, 0, 0, 0)


def in_header(parts: bytes) -> bytes:
    """A JPEG with these parts before all others."""
    return BASELINE[:2] + parts + BASELINE[2:]


def with_chunks(chunks: bytes) -> bytes:
    """A PNG with these chunks behind its header."""
    return PNG[:33] + chunks + PNG[33:]


EXPENSIVE = {
    "more than 100 scans": [
        PROGRESSIVE[:-2] + 5000 * LAST_SCAN + PROGRESSIVE[-2:],
        PROGRESSIVE[:-2] + 5000 * LAST_SCAN,
    ],
    "more than 4 MiB before the first scan": [
        in_header(65 * (b"\xff\xfe\xff\xff" + bytes(2**16 - 3))),
        in_header(2**23 * b"\xff"),
        BASELINE[:2] + 2**23 * b"\xff",
    ],
    "more than 1024 parts": [
        in_header(2**20 * b"\xff\xfe\x00\x02"),
        in_header(2**15 * b"\xff\xe1\x00\x0aExif\0\0MM"),
        PROGRESSIVE[:-2] + 2**22 * b"\xff\xfe\x00\x02",
    ],
    "80000000 pixels of 3 components in 26 or more scans": [
        resize_jpeg(PROGRESSIVE, 8000, 10000)[:-2] + 25 * LAST_SCAN
    ],
    "80000000 pixels of 4 components in 1 or more scans": [resize_jpeg(CMYK, 8000, 10000)],
    "arithmetic coding": [BASELINE.replace(b"\xff\xc0", b"\xff\xc9", 1)],
    "more than 16 MiB of metadata": [
        with_chunks(17 * make_chunk(b"prIv", bytes(2**20))),
        encode(make_image(0), "WEBP", exif=bytes(2**24 + 1)),
    ],
    "640 MB of 16-bit pixels": [make_png(8000, 10000, b"", 16, 6)],
    "more than 65536 parts": [
        b"RIFF\0\0\0\0WEBP" + 2**17 * b"junk\0\0\0\0",
        with_chunks(2**17 * make_chunk(b"exAm", b"")),
    ],
    "run-length encoded BMP": [b"BM" + BMP_HEADER + bytes(2**20)],
}


@pytest.mark.parametrize("violation", EXPENSIVE)
def test_expensive_file_is_rejected_undecoded(violation, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for content in EXPENSIVE[violation]:
        with pytest.raises(ImageDecodeError) as caught:
            decode_image(content, 32, "square")
        assert str(caught.value) == f"too costly: {violation}"


def test_what_phones_add_to_a_photograph_is_no_violation():
    scans = 200 * b"\xff\xda\0\2"
    video = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes() + scans
    expected = decode_image(BASELINE, 32, "none").pixels
    for content in (BASELINE + video, encode(make_image(0), exif=b"Exif\0\0" + scans)):
        np.testing.assert_array_equal(decode_image(content, 32, "none").pixels, expected)


@pytest.mark.parametrize(
    "content",
    [
        PROGRESSIVE,
        PROGRESSIVE[:-2] + 90 * LAST_SCAN,
        # The largest cameras, 61 and 80 megapixels, with more scans than encoders write.
        make_png(6336, 9504, b"", 16, 2),
        resize_jpeg(PROGRESSIVE, 6336, 9504)[:-2] + 20 * LAST_SCAN,
        resize_jpeg(PROGRESSIVE, 8000, 10000)[:-2] + 14 * LAST_SCAN,
    ],
)
def test_camera_files_are_within_limits(content):
    assert decode_cost_violation(content) == ""


# In a process of its own, whose peak memory is that of the file.
MEASURE = """
import sys, time
from pathlib import Path
from stages.photographs.decoding import ImageDecodeError, decode_image
content = Path(sys.argv[1]).read_bytes()
started = time.process_time()
try:
    decode_image(content, 512, "cervix")
except ImageDecodeError as error:
    assert str(error).startswith("truncated: ")
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(time.process_time() - started, int(peak) / 2**20)
"""
WIDTH, HEIGHT = 8936, 8944  # 79.9 million pixels


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is that of Linux")
@pytest.mark.parametrize("kept", [1, 0.97], ids=["complete", "truncated"])
@pytest.mark.parametrize(
    ("depth", "color_type", "row_bytes"),
    [(8, 6, 4 * WIDTH), (16, 4, 4 * WIDTH), (16, 0, 2 * WIDTH)],
    ids=["RGBA", "LA 16", "gray 16"],
)
def test_largest_png_takes_at_most_10_seconds_and_a_gibibyte(
    tmp_path, depth, color_type, row_bytes, kept
):
    noise = np.random.default_rng(0).integers(0, 256, row_bytes // 10, np.uint8).tobytes()
    row = b"\4" + noise.ljust(row_bytes, b"\0")  # filter 4, Paeth's, is the slowest
    packer = zlib.compressobj(1)
    data = b"".join([packer.compress(row) for _ in range(HEIGHT)] + [packer.flush()])
    content = make_png(WIDTH, HEIGHT, b"", depth, color_type)
    content = content.replace(make_chunk(b"IDAT", zlib.compress(b"")), make_chunk(b"IDAT", data))
    (tmp_path / "image").write_bytes(content[: int(kept * len(content))])
    command = (sys.executable, "-c", MEASURE, tmp_path / "image")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, gibibytes = map(float, result.stdout.split())
    assert seconds < 10
    assert gibibytes < 1
