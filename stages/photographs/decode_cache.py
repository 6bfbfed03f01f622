"""Decoded images on disk, by the hash of their file: after adding ten images only those ten are decoded."""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
import scipy

from stages.core.files import open_atomic
from stages.photographs import crops, decoding, file_limits, stains
from stages.photographs.crops import CropBox
from stages.photographs.decoding import DecodedImage

DECODER = (decoding, crops, file_limits, stains)  # the code that pixels depend on
NO_PIXELS = np.empty(0, np.uint8)
MAX_CACHE_BYTES = 4 * 2**30  # what was used longest ago is evicted first


@dataclass(frozen=True)
class DecodeConfig:
    """Everything besides the file's bytes that the pixels depend on."""

    size: int
    crop: str
    usable_part: float

    def cache_key(self) -> str:
        """Changes with the parameters, the code and the versions of the libraries."""
        code = b"".join(inspect.getsource(module).encode() for module in DECODER)
        text = json.dumps([asdict(self), PIL.__version__, np.__version__, scipy.__version__])
        return hashlib.sha256(text.encode() + code).hexdigest()[:16]


def entry_path(folder: Path, digest: str) -> Path:
    """Where the image of a file with this sha256 is kept."""
    return folder / digest[:2] / f"{digest}.npz"


def load_entry(entry: Path, size: int) -> DecodedImage | None:
    """What the cache has; a damaged entry (the zip format has checksums) counts as none."""
    try:
        with np.load(io.BytesIO(entry.read_bytes()), allow_pickle=False) as stored:
            metadata = json.loads(str(stored["metadata"]))
            crop_box = CropBox(**metadata.pop("crop_box"))
            image = DecodedImage(
                stored["pixels"], stored["thumbnail"], crop_box=crop_box, **metadata
            )
        with contextlib.suppress(OSError):  # a cache that may only be read is one, too
            os.utime(entry)  # used now: the last to be evicted
    except (
        Exception
    ):  # zipfile and numpy raise many kinds for damaged files, and all mean the same: decode again
        return None
    return image if image.pixels.shape == (size, size, 3) else None


def save_entry(entry: Path, image: DecodedImage) -> None:
    """Write an entry, whole or not at all. Raises OSError with the name of the file."""
    metadata = asdict(dataclasses.replace(image, pixels=NO_PIXELS, thumbnail=NO_PIXELS))
    del metadata["pixels"], metadata["thumbnail"]
    content = io.BytesIO()
    np.savez(content, pixels=image.pixels, thumbnail=image.thumbnail, metadata=json.dumps(metadata))
    with open_atomic(entry, f".{os.getpid()}.part") as stream:  # another worker may write the same
        stream.write(content.getbuffer())


def evict_lru(cache: Path, limit: int) -> None:
    """Delete the least recently used entries until the cache holds at most `limit` bytes."""
    entries = []
    for entry in cache.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # evicted by another process
            if entry.is_file():
                status = entry.stat()
                entries.append((status.st_mtime, status.st_size, entry))
    entries.sort(reverse=True)
    total = 0
    for _, size, entry in entries:
        total += size
        if total > limit:
            with contextlib.suppress(OSError):  # a cache that may only be read
                entry.unlink()
