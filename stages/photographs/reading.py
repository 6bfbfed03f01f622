"""All listed files -> pixels on disk, with every core and little memory; what was decoded before comes from a cache."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import scipy
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from stages.core.params import Data
from stages.photographs import crops, decoding, file_limits, stains
from stages.photographs.crops import CropBox
from stages.photographs.decoding import THUMBNAIL, ImageDecodeError, Photograph, decode_image
from stages.photographs.listing import ImageRecord

MAX_BYTES = 128 * 2**20  # a larger file is refused unread
CACHE_BYTES = 4 * 2**30  # what was used longest ago goes first
CHUNK = 8  # files that a worker takes at once

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class DecodeConfig:
    """Everything besides the file's bytes that decides over the pixels."""

    size: int
    crop: str
    usable_part: float

    def digest(self) -> str:
        """Changes with the parameters, the code and the decoder."""
        code = b"".join(Path(module.__file__).read_bytes() for module in (decoding, crops, file_limits, stains))
        text = json.dumps([asdict(self), PIL.__version__, np.__version__, scipy.__version__])
        return hashlib.sha256(text.encode() + code).hexdigest()[:16]


@dataclass(frozen=True)
class DecodedImages:
    """listed[i] has the hash hashes[i], the facts facts[i] (a Photograph without pixels) and the thumbnail thumbnails[i].

    rejected: path -> "kind: detail" of the files that gave none.
    """

    listed: list[ImageRecord]
    rejected: dict[str, str]
    hashes: list[str]
    facts: list[Photograph]
    thumbnails: np.ndarray  # uint8 (N, 64, 64)


def decode_all(listed: list[ImageRecord], data: Data, spool: BinaryIO, map_: Map, cache: Path) -> DecodedImages:
    """Write the pixels of each sound photograph to `spool`, in the order of `listed`."""
    recipe = DecodeConfig(data.image_size, data.crop, data.usable_part)
    folder = cache / recipe.digest()
    sound, rejected, hashes, facts = [], {}, [], []
    # One block from the start: small arrays kept between large ones that come and go would tear the memory to pieces.
    thumbnails = np.empty((len(listed), THUMBNAIL, THUMBNAIL), np.uint8)
    answers = map_(partial(decode_file, recipe=recipe, cache=folder), [one.file for one in listed])
    # On a terminal only: a bar in a log is noise.
    for one, (digest, answer) in tqdm(
        zip(listed, answers, strict=True), "photographs", len(listed), unit="img", disable=None, smoothing=0.05
    ):
        if isinstance(answer, str):
            rejected[one.path] = answer
            continue
        spool.write(answer.pixels.tobytes())
        thumbnails[len(sound)] = answer.thumbnail
        facts.append(Photograph(np.empty(0, np.uint8), np.empty(0, np.uint8), *_facts(answer)))
        sound.append(one)
        hashes.append(digest)
    prune(cache, CACHE_BYTES)
    return DecodedImages(sound, rejected, hashes, facts, thumbnails[: len(sound)])


def _facts(photograph: Photograph) -> tuple[int, int, str, str, CropBox]:
    return photograph.width, photograph.height, photograph.mode, photograph.stain, photograph.region


def decode_file(file: Path, recipe: DecodeConfig, cache: Path) -> tuple[str, Photograph | str]:
    """(sha256 of the content, the photograph or the reason why it is none)."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return "", f"too large: more than {MAX_BYTES // 2**20} MiB"
        content = file.read_bytes()
    except OSError as error:
        return "", f"unreadable: {error.strerror}"
    digest = hashlib.sha256(content).hexdigest()
    entry = cache / digest[:2] / f"{digest}.npz"
    photograph = _load(entry, recipe.size)
    if photograph is None:
        try:
            photograph = decode_image(content, recipe.size, recipe.crop, recipe.usable_part)
        except ImageDecodeError as error:
            return digest, str(error)
        _save(entry, photograph)
    return digest, photograph


def _load(entry: Path, size: int) -> Photograph | None:
    """What the cache knows; a damaged entry (the zip format carries checksums) counts as none."""
    try:
        with np.load(io.BytesIO(entry.read_bytes()), allow_pickle=False) as stored:
            *facts, region = json.loads(str(stored["facts"]))
            photograph = Photograph(stored["pixels"], stored["thumbnail"], *facts, CropBox(**region))
        os.utime(entry)  # used now: the last to be pruned
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, TypeError, OSError, zipfile.BadZipFile):
        return None
    return photograph if photograph.pixels.shape == (size, size, 3) else None


def _save(entry: Path, photograph: Photograph) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    *facts, region = _facts(photograph)
    part = entry.with_name(f"{entry.name}.{os.getpid()}")
    with part.open("wb") as stream:
        text = json.dumps([*facts, asdict(region)])
        np.savez(stream, pixels=photograph.pixels, thumbnail=photograph.thumbnail, facts=text)
    part.replace(entry)  # whole or not at all


def prune(cache: Path, limit: int) -> None:
    """Delete the entries used longest ago until the cache holds at most `limit` bytes."""
    entries = []
    for entry in cache.rglob("*"):
        if entry.is_file():
            status = entry.stat()
            entries.append((status.st_mtime, status.st_size, entry))
    entries.sort(reverse=True)
    total = 0
    for _, size, entry in entries:
        total += size
        if total > limit:
            entry.unlink(missing_ok=True)


@contextmanager
def parallel_map(workers: int) -> Iterator[Map]:
    """An ordered map over that many processes (0: one per core); with one, no process is started.

    Only a few chunks are under way at a time, so that neither items nor results pile up in memory.
    """
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker) as pool:

        def ordered(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            items, running = iter(items), deque()
            while chunk := list(itertools.islice(items, CHUNK)):
                running.append(pool.submit(_apply, function, chunk))
                if len(running) > 3 * workers:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

        yield ordered


def _apply(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [function(item) for item in items]


def _begin_worker() -> None:
    """One thread for the arithmetic, and no life after the parent, however it dies."""
    threadpool_limits(1)

    def follow_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
