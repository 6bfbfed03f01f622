"""Files that are made to take a decoder minutes are rejected undecoded; the files that cameras write are not."""

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

PROGRESSIVE = encode(make_image(0), progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
COMMENT = b"\xff\xfe\xff\xff" + bytes(2**16 - 3)
BASELINE, PNG = encode(make_image(0)), encode(make_image(0), "PNG")
EXPENSIVE = {
    "many scans": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN + PROGRESSIVE[-2:], "more than 100 scans"),
    "many scans without end": (PROGRESSIVE[:-2] + 5000 * LAST_SCAN, "more than 100 scans"),
    "large comments": (
        BASELINE[:2] + 65 * COMMENT + BASELINE[2:],
        "more than 4 MiB before the first scan",
    ),
    "many comments": (
        BASELINE[:2] + 2**20 * b"\xff\xfe\x00\x02" + BASELINE[2:],
        "more than 1024 parts",
    ),
    "many comments behind a scan": (
        PROGRESSIVE[:-2] + 2**22 * b"\xff\xfe\x00\x02",
        "more than 1024 parts",
    ),
    "EXIF in many parts": (
        BASELINE[:2] + 2**15 * b"\xff\xe1\x00\x0aExif\0\0MM" + BASELINE[2:],
        "more than 1024 parts",
    ),
    "scans of many pixels": (
        resize_jpeg(PROGRESSIVE, 8000, 10000)[:-2] + 25 * LAST_SCAN,
        "80000000 pixels of 3 components in 26 or more scans",
    ),
    "coefficients of many components": (
        resize_jpeg(encode(make_image(0).convert("CMYK"), progressive=True), 8000, 10000),
        "80000000 pixels of 4 components in 1 or more scans",
    ),
    "arithmetic coding": (BASELINE.replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic coding"),
    "large PNG metadata": (
        PNG[:33] + 17 * make_chunk(b"prIv", bytes(2**20)) + PNG[33:],
        "more than 16 MiB of metadata",
    ),
    "large 16-bit PNG": (make_png(8000, 10000, b"", 16, 6), "640 MB of 16-bit pixels"),
    "large WebP metadata": (
        encode(make_image(0), "WEBP", exif=bytes(2**24 + 1)),
        "more than 16 MiB of metadata",
    ),
    "many WebP chunks": (b"RIFF\0\0\0\0WEBP" + 2**17 * b"junk\0\0\0\0", "more than 65536 parts"),
    "fill bytes": (
        BASELINE[:2] + 2**23 * b"\xff" + BASELINE[2:],
        "more than 4 MiB before the first scan",
    ),
    "fill bytes only": (BASELINE[:2] + 2**23 * b"\xff", "more than 4 MiB before the first scan"),
    "many chunks": (
        PNG[:33] + 2**17 * (b"\0\0\0\0exAm" + zlib.crc32(b"exAm").to_bytes(4, "big")) + PNG[33:],
        "more than 65536 parts",
    ),
    "run lengths": (
        b"BM"
        + struct.pack("<III", 54, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 99, 99, 1, 8, 1, 0, 0, 0, 0, 0)
        + bytes(2**20),
        "run-length encoded BMP",
    ),
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_expensive_file_is_rejected_undecoded(name, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    content, violation = EXPENSIVE[name]
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(content, 32, "square")
    assert str(caught.value) == f"too costly: {violation}"


def test_camera_files_are_within_limits():
    def pixels(content):
        return decode_image(content, 32, "none").pixels

    video = (
        np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes() + 200 * b"\xff\xda\0\2"
    )
    assert pixels(PROGRESSIVE).shape == (32, 32, 3)
    for content in (
        BASELINE + video,
        encode(make_image(0), exif=b"Exif\0\0" + 200 * b"\xff\xda\xff\xd9"),
    ):
        np.testing.assert_array_equal(pixels(content), pixels(BASELINE))
    assert decode_cost_violation(PROGRESSIVE[:-2] + 90 * LAST_SCAN) == ""
    assert decode_cost_violation(make_png(6336, 9504, b"", 16, 2)) == ""
    # The largest cameras, 61 and 80 megapixels, progressive with more scans than encoders write.
    assert decode_cost_violation(resize_jpeg(PROGRESSIVE, 6336, 9504)[:-2] + 20 * LAST_SCAN) == ""
    assert decode_cost_violation(resize_jpeg(PROGRESSIVE, 8000, 10000)[:-2] + 14 * LAST_SCAN) == ""


# In a process of its own: the largest memory it ever had is that of the file. Time of the processor, whatever else runs.
MEASURE = """
import sys, time
from pathlib import Path
from stages.photographs.decoding import decode_image
content = Path(sys.argv[1]).read_bytes()
started = time.process_time()
decode_image(content, 512, "cervix")
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(time.process_time() - started, int(peak) / 2**20)
"""
WIDTH, HEIGHT = 8936, 8944  # 79.9 million pixels


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is that of Linux")
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "truncated"])
@pytest.mark.parametrize(
    ("depth", "color_type", "channels"),
    [(8, 6, 4), (16, 4, 2), (16, 0, 1)],
    ids=["RGBA", "LA 16", "gray 16"],
)
def test_largest_png_takes_at_most_10_seconds_and_a_gibibyte(
    tmp_path, depth, color_type, channels, complete
):
    noise = (
        np.random.default_rng(0)
        .integers(0, 256, WIDTH * channels * depth // 80, np.uint8)
        .tobytes()
    )
    row = (
        b"\4" + noise + bytes(WIDTH * channels * depth // 8 - len(noise))
    )  # filter 4, Paeth's, is the slowest
    packer = zlib.compressobj(1)
    data = b"".join([packer.compress(row) for _ in range(HEIGHT)] + [packer.flush()])
    empty = make_chunk(b"IDAT", zlib.compress(b""))
    content = make_png(WIDTH, HEIGHT, b"", depth, color_type).replace(
        empty, make_chunk(b"IDAT", data)
    )
    (tmp_path / "image").write_bytes(content if complete else content[: int(0.97 * len(content))])
    command = (sys.executable, "-c", MEASURE, tmp_path / "image")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, gibibytes = map(float, result.stdout.split())
    assert seconds < 10
    assert gibibytes < 1
