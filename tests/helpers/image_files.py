"""Small images that resemble photographs, and folders of them, for the tests of preprocess."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.params import DataParams
from stages.core.params_file import load_params
from tests.helpers.repository import ROOT


def make_image(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Smooth colors with finer texture; another seed gives an unrelated image."""
    rng = np.random.default_rng(seed)
    colors = Image.fromarray(rng.integers(40, 215, (5, 5, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    texture = Image.fromarray(rng.integers(0, 90, (24, 24), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    mixed = np.asarray(colors, np.int16) + np.asarray(texture, np.int16)[..., None] - 45
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def make_png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose header claims this size, whatever its pixel data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, which is returned."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def data_params(source: Path, **changes) -> DataParams:
    """The project's `data` section for another source, without the settings that belong to the sample."""
    defaults = {"label_fixes": str(ROOT / "data/label_fixes.csv"), "groups": "none"}
    return load_params(ROOT / "params.yaml").data.model_copy(update={"source": str(source), **defaults | changes})
