"""Any bytes give an image or a reason, in bounded time and memory, and the same ones again."""

import faulthandler
import os
import random
import resource
import signal
import sys
import time
import warnings

import numpy as np
import pytest

from stages.photographs.decoding import DecodedImage, ImageDecodeError, decode_image
from tests.helpers.image_files import REASONS
from tests.helpers.image_mutator import mutate, valid_images

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")

NO_IMAGES = {
    "PNG animated": "animated",
    "WEBP animated": "animated",
    "GIF": "other format",
    "TIFF compressed": "too costly",
}
SECONDS = 5  # of the processor, for one file
WALL_SECONDS = 60  # a machine may be busy
MAX_GROWTH = 400  # MiB
COUNT = int(os.environ.get("FUZZ_IMAGES", "900"))  # damaged files


class HangError(BaseException):
    """No Exception: the decoder catches each of those."""


@pytest.fixture(autouse=True)
def _hangs_are_detected():
    def report(signum, frame):
        raise HangError

    previous = signal.signal(signal.SIGALRM, report)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, previous)


def decode(content: bytes, size: int, crop: str) -> DecodedImage | str:
    """The image, or the reason why there is none."""
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    # Where a library never comes back to Python, the timer does nothing.
    faulthandler.dump_traceback_later(2 * WALL_SECONDS, exit=True)
    started = time.process_time()
    try:
        result = decode_image(content, size, crop)
    except ImageDecodeError as error:
        result = str(error)
    assert time.process_time() - started < SECONDS
    return result


def check(content: bytes, size: int, crop: str) -> str:
    """Check one file; the kind of its reason, or "" for an image."""
    first, again = (decode(content, size, crop) for _ in range(2))
    if isinstance(first, str):
        kind, _, detail = first.partition(": ")
        assert again == first
        assert kind in REASONS
        assert detail.isprintable()
        assert detail
        return kind
    assert first.pixels.shape == (size, size, 3)
    assert first.thumbnail.shape == (64, 64)
    assert first.pixels.dtype == first.thumbnail.dtype == np.uint8
    assert first.mode.split()[0] in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "AVIF", "TIFF")
    assert min(first.width, first.height) >= 32
    assert 0 <= first.crop_box.left < first.crop_box.right <= 1
    assert 0 <= first.crop_box.top < first.crop_box.bottom <= 1
    np.testing.assert_array_equal(again.pixels, first.pixels)
    np.testing.assert_array_equal(again.thumbnail, first.thumbnail)
    return ""


def peak_memory() -> float:
    """MiB that this process ever had."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@pytest.mark.parametrize("name", valid_images())
def test_undamaged_file_gives_image_or_reason(name):
    assert check(valid_images()[name], 32, "square") == NO_IMAGES.get(name, "")


def test_damaged_file_gives_image_or_reason(capfd):
    files, kinds, before = list(valid_images().values()), set(), peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(COUNT):
            rng = random.Random(seed)  # noqa: S311
            content = mutate(rng.choice(files), rng)
            size, crop = rng.choice((16, 32, 100)), rng.choice(("none", "square", "cervix"))
            try:
                kinds.add(check(content, size, crop))
            except BaseException as error:
                error.add_note(f"seed {seed}, size {size}, crop {crop}")
                raise
    expected = {"", "not an image", "unreadable", "truncated", "too large", "too small"}
    assert kinds >= expected, "the files reach every check"
    assert peak_memory() - before < MAX_GROWTH
    assert capfd.readouterr().err == ""
