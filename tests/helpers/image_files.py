"""Small photograph-like files, and folders full of them, for the tests of preprocess."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.params import Data, load_all
from tests.helpers.repository import ROOT


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Smooth colours with finer texture on top; another seed gives an unrelated picture."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(40, 215, (5, 5, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    texture = Image.fromarray(rng.integers(0, 90, (24, 24), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    mixed = np.asarray(colours, np.int16) + np.asarray(texture, np.int16)[..., None] - 45
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, which is returned."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def data(source: Path, **changes) -> Data:
    """The project's own `data` section, for another source and without what belongs to the sample."""
    plain = {"label_fixes": str(ROOT / "data/label_fixes.csv"), "groups": "none"}
    return dataclasses.replace(load_all(ROOT / "params.yaml").data, source=str(source), **plain | changes)
