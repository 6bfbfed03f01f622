"""All listed files -> pixels on disk, with every core and little memory."""

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from stages.core.params import DataParams
from stages.photographs.decode_cache import (
    MAX_CACHE_BYTES,
    NO_PIXELS,
    DecodeConfig,
    entry_path,
    evict_lru,
    load_entry,
    save_entry,
)
from stages.photographs.decoding import THUMBNAIL, DecodedImage, ImageDecodeError, decode_image
from stages.photographs.image_index import ImageRecord
from stages.photographs.parallel import ParallelMap

MAX_BYTES = 128 * 2**20  # a larger file is refused unread


@dataclass(frozen=True)
class DecodedImages:
    """The images that could be decoded, and the files that couldn't.

    Attributes:
        records: N images.
        rejected: path -> "kind: detail".
        hashes: N SHA-256 of the files.
        metadata: N images without their pixels.
        thumbnails: uint8 (N, 64, 64).
    """

    records: list[ImageRecord]
    rejected: dict[str, str]
    hashes: list[str]
    metadata: list[DecodedImage]
    thumbnails: np.ndarray


def decode_all(
    records: list[ImageRecord], data: DataParams, spool: BinaryIO, map_: ParallelMap, cache: Path
) -> DecodedImages:
    """Write the pixels of each valid image to `spool`, in the order of `records`."""
    config = DecodeConfig(data.image_size, data.crop)
    # One block from the start: small arrays between large ones that come and go would fragment the
    # heap.
    thumbnails = np.empty((len(records), THUMBNAIL, THUMBNAIL), np.uint8)
    decoded = DecodedImages([], {}, [], [], thumbnails)
    results = map_(
        partial(decode_file, config=config, cache=cache / config.cache_key()),
        [record.file.absolute() for record in records],
    )
    warned = False
    # disable=None shows the bar on a terminal only.
    for record, (digest, result, cache_error) in tqdm(
        zip(records, results, strict=True),
        "images",
        len(records),
        unit="img",
        disable=None,
        smoothing=0.05,
    ):
        if cache_error and not warned:
            warning = f"{cache_error}: goes on without the cache of decoded images"
            print(f"warning: {warning}", file=sys.stderr)
            warned = True
        if isinstance(result, str):
            decoded.rejected[record.path] = result
            continue
        spool.write(result.pixels.tobytes())
        thumbnails[len(decoded.records)] = result.thumbnail
        without_pixels = dataclasses.replace(result, pixels=NO_PIXELS, thumbnail=NO_PIXELS)
        decoded.metadata.append(without_pixels)
        decoded.records.append(record)
        decoded.hashes.append(digest)
    evict_lru(cache, MAX_CACHE_BYTES)
    return dataclasses.replace(decoded, thumbnails=thumbnails[: len(decoded.records)])


def decode_file(
    file: Path, config: DecodeConfig, cache: Path
) -> tuple[str, DecodedImage | str, str]:
    """Read and decode one file, or take it from the cache.

    Returns:
        SHA-256 of the content; the image, or why there is none; why the cache could not take it,
        or "".
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)  # its size is no limit, for it may grow meanwhile
    except OSError as error:
        return "", f"unreadable: {error.strerror}", ""
    if len(content) > MAX_BYTES:
        return "", f"too large: more than {MAX_BYTES // 2**20} MiB", ""
    digest = hashlib.sha256(content).hexdigest()
    entry = entry_path(cache, digest)
    image = load_entry(entry, config.size)
    if image is None:
        try:
            image = decode_image(content, config.size, config.crop)
        except ImageDecodeError as error:
            return digest, str(error), ""
        try:
            save_entry(entry, image)
        except OSError as error:  # full or read-only; the cache saves time, nothing else
            return digest, image, f"{error.filename}: {error.strerror}"
    return digest, image, ""
