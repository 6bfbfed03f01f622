"""The cache of decoded images: what is decoded again, damaged entries, and its size."""

import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.photographs import code_digest, decode_cache, reading
from stages.photographs.decode_cache import DecodeConfig, evict_lru, load_entry
from tests.helpers.full_disk import file_size_limit
from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.preprocessing import decode_folder, write_image_folder


@pytest.fixture
def source(tmp_path):
    return write_image_folder(tmp_path / "source")


def test_only_new_and_changed_files_are_decoded(source, tmp_path, monkeypatch):
    first, pixels = decode_folder(source, tmp_path / "cache")
    original, calls = reading.decode_image, []
    monkeypatch.setattr(reading, "decode_image", lambda *args: calls.append(1) or original(*args))
    cached, cached_pixels = decode_folder(source, tmp_path / "cache")
    assert cached_pixels == pixels
    assert cached.metadata[3].crop_box == first.metadata[3].crop_box
    assert len(calls) == 2, "the two invalid files"
    write_files(source, {"a/new.jpg": encode(make_image(50)), "b/1.jpg": encode(make_image(51))})
    decode_folder(source, tmp_path / "cache")
    assert len(calls) == 2 + 4


def test_entry_damaged_anywhere_is_ignored(source, tmp_path):
    decode_folder(source, tmp_path / "cache")
    entry = min((tmp_path / "cache").rglob("*.npz"))
    expected, content, rng = load_entry(entry, 16), entry.read_bytes(), np.random.default_rng(0)
    for position in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        entry.write_bytes(damaged if position % 4 else damaged[:position])
        image = load_entry(entry, 16)  # whole, where the changed bit is none of the content
        assert image is None or np.array_equal(image.pixels, expected.pixels)


def test_full_cache_costs_time_only_and_warns_once(source, tmp_path, capfd):
    _, pixels = decode_folder(source, tmp_path / "a")
    with file_size_limit(1000):
        assert decode_folder(source, tmp_path / "cache")[1] == pixels
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert re.search(r"cache/.*\.npz: .*: goes on without the cache of decoded images", warning)
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()]


def test_least_recently_used_entries_are_evicted(tmp_path, monkeypatch):
    for age in range(5):
        file = write_files(tmp_path, {f"x/{age}": bytes(100)}) / f"x/{age}"
        os.utime(file, (1000 - age, 1000 - age))
    entries = [*tmp_path.rglob("*"), tmp_path / "evicted by another process"]
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: entries)
    evict_lru(tmp_path, 250)
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["0", "1"]


def test_cache_key_depends_on_settings_and_code(monkeypatch):
    configs = [DecodeConfig(16, "none"), DecodeConfig(32, "none"), DecodeConfig(16, "square")]
    keys = {config.cache_key() for config in configs}
    monkeypatch.setattr(decode_cache, "CODE_DIGEST", "other")
    keys |= {config.cache_key() for config in configs}
    assert len(keys) == 6


def test_code_digest_changes_with_any_file_of_its_folder(tmp_path):
    shutil.copy(code_digest.__file__, tmp_path)
    digests = set()
    for content in ("a = 1", "a = 2"):
        (tmp_path / "helper.py").write_text(content)
        digests.add(runpy.run_path(str(tmp_path / "code_digest.py"))["CODE_DIGEST"])
    assert len(digests) == 2
