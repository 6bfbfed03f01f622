"""Decoded images on disk, by the hash of their file: of ten added images only those are decoded."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
import scipy

from stages.core.files import open_atomic
from stages.photographs.code_digest import CODE_DIGEST
from stages.photographs.crops import CropBox
from stages.photographs.decoding import DecodedImage

NO_PIXELS = np.empty(0, np.uint8)
MAX_CACHE_BYTES = 4 * 2**30  # the least recently used entries are evicted first


@dataclass(frozen=True)
class DecodeConfig:
    """The parameters that the pixels depend on."""

    size: int
    crop: str

    def cache_key(self) -> str:
        """Changes with the parameters, any file of this package and the versions of libraries."""
        versions = (PIL.__version__, np.__version__, scipy.__version__)
        text = json.dumps([asdict(self), CODE_DIGEST, *versions])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def entry_path(folder: Path, digest: str) -> Path:
    """Where the image of a file with this SHA-256 is kept."""
    return folder / digest[:2] / f"{digest}.npz"


def load_entry(entry: Path, size: int) -> DecodedImage | None:
    """The cached image; None without entry, or for a damaged one (the zip format has checksums)."""
    try:
        with np.load(io.BytesIO(entry.read_bytes()), allow_pickle=False) as stored:
            metadata = json.loads(str(stored["metadata"]))
            crop_box = CropBox(**metadata.pop("crop_box"))
            image = DecodedImage(
                stored["pixels"], stored["thumbnail"], crop_box=crop_box, **metadata
            )
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(entry)  # so that it is evicted last
    except Exception:  # zipfile and numpy raise many kinds for damaged files: decode it again
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
    total = 0
    for _, size, entry in sorted(entries, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):  # the cache may be read-only
                entry.unlink()
