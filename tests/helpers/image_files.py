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
