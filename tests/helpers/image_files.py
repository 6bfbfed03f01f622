"""Small images that resemble photographs, their files, and damaged or hostile files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.params import DataParams
from tests.helpers.params import params

REASONS = (  # what an ImageDecodeError may begin with
    "animated", "blank", "empty", "not an image", "other format", "too costly", "too elongated",
    "too large", "too small", "truncated", "unreadable",
)  # fmt: skip


def make_image(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Smooth colors with finer texture; another seed gives an unrelated image."""
    rng, bicubic = np.random.default_rng(seed), Image.Resampling.BICUBIC
    colors = Image.fromarray(rng.integers(40, 215, (5, 5, 3), dtype=np.uint8))
    texture = Image.fromarray(rng.integers(0, 90, (24, 24), dtype=np.uint8))
    colors = np.asarray(colors.resize((width, height), bicubic), np.int16)
    texture = np.asarray(texture.resize((width, height), bicubic), np.int16)
    return Image.fromarray((colors + texture[..., None] - 45).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def make_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def make_png(
    width: int, height: int, data: bytes = b"", depth: int = 8, color_type: int = 2
) -> bytes:
    """A PNG file whose header claims this size, whatever its pixel data; by default RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(make_chunk(name, body) for name, body in parts)


def resize_jpeg(content: bytes, width: int, height: int) -> bytes:
    """The same file with another size in the header of its frame."""
    start = max(content.find(b"\xff\xc0\x00"), content.find(b"\xff\xc2\x00")) + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, which is returned."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def data_params(source: Path, **changes) -> DataParams:
    """The project's `data` section for another source, without the sample's tables."""
    defaults = {"source": str(source), "label_fixes": "none", "groups": "none"}
    return params().data.model_copy(update=defaults | changes)


def make_profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of an output device (ICC.1:2001-04).

    Args:
        space: its colors, four letters.
        connection: space of the colors that `tags` convert them to, XYZ or Lab, four letters.
        tags: name -> content.
    """
    white = struct.pack(">3i", *(round(65536 * value) for value in (0.9642, 1, 0.8249)))
    tags = {b"wtpt": b"XYZ " + bytes(4) + white, **tags}
    table, contents = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(contents)
        table += name + struct.pack(">II", offset, len(content))
        contents += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(contents)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"prtr", space, connection, b"acsp")
    return head.ljust(68, b"\0") + white.ljust(60, b"\0") + table + contents
