"""Many files at once: order, workers, the cache, and files that can't be read."""

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from stages.photographs import reading
from stages.photographs.listing import list_images
from stages.photographs.reading import DecodeConfig, decode_all, decode_file, parallel_map, prune
from tests.helpers.image_files import data, encoded, picture, write


@pytest.fixture
def source(tmp_path):
    files = {f"{'ab'[n % 2]}/{n}.jpg": encoded(picture(n, 60 + n, 50)) for n in range(20)}
    return write(tmp_path / "source", files | {"a/99.jpg": b"", "b/99.jpg": encoded(picture(0))[:300]})


def decode(source, cache, map_=map):
    spool = io.BytesIO()
    settings = data(source, image_size=16)
    return decode_all(list_images(settings).photographs, settings, spool, map_, cache), spool.getvalue()


def test_pixels_in_the_order_of_the_listing(source, tmp_path):
    decoded, pixels = decode(source, tmp_path / "cache")
    assert [one.path for one in decoded.listed] == sorted(one.path for one in decoded.listed)
    assert len(pixels) == 20 * 16 * 16 * 3
    assert decoded.thumbnails.shape == (20, 64, 64)
    assert decoded.facts[0].width == 60
    assert set(decoded.rejected) == {"a/99.jpg", "b/99.jpg"}


def test_workers_change_nothing(source, tmp_path):
    alone, pixels = decode(source, tmp_path / "cache1")
    with parallel_map(2) as map_:
        together, same_pixels = decode(source, tmp_path / "cache2", map_)
    assert same_pixels == pixels
    assert together.hashes == alone.hashes
    assert together.rejected == alone.rejected
    np.testing.assert_array_equal(together.thumbnails, alone.thumbnails)


def test_only_new_and_changed_files_are_decoded_again(source, tmp_path, monkeypatch):
    first, pixels = decode(source, tmp_path / "cache")
    read, calls = reading.decode_image, []
    monkeypatch.setattr(reading, "decode_image", lambda *arguments: calls.append(1) or read(*arguments))
    again, same_pixels = decode(source, tmp_path / "cache")
    assert same_pixels == pixels
    assert again.facts[3].region == first.facts[3].region
    assert len(calls) == 2, "the two faulty ones"
    write(source, {"a/new.jpg": encoded(picture(50)), "b/1.jpg": encoded(picture(51))})
    decode(source, tmp_path / "cache")
    assert len(calls) == 2 + 4


def test_a_damaged_cache_is_no_cache(source, tmp_path):
    _, pixels = decode(source, tmp_path / "cache")
    entries = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(entries) == 20
    for number, entry in enumerate(entries):
        content = bytearray(entry.read_bytes())
        content[400 + number] ^= 255
        entry.write_bytes(content[: 3 * number] if number % 2 else content)
    assert decode(source, tmp_path / "cache")[1] == pixels


def test_recipe_decides_over_the_cache():
    digests = {
        DecodeConfig(*recipe).digest()
        for recipe in ((16, "none", 1.0), (32, "none", 1.0), (16, "square", 1.0), (16, "none", 0.5))
    }
    assert len(digests) == 4


def test_the_cache_is_bounded(tmp_path):
    for age in range(5):
        file = write(tmp_path, {f"x/{age}": bytes(100)}) / f"x/{age}"
        os.utime(file, (1000 - age, 1000 - age))
    prune(tmp_path, 250)
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["0", "1"]


def test_files_that_cannot_be_read(source, tmp_path, monkeypatch):
    plain = Path.read_bytes

    def read_bytes(self):
        if self.name == "3.jpg":
            raise PermissionError(13, "Permission denied")
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    (source / "a/4.jpg").write_bytes(bytes(9000))
    monkeypatch.setattr(reading, "MAX_BYTES", 8999)
    rejected = decode(source, tmp_path / "cache")[0].rejected
    assert rejected["b/3.jpg"] == "unreadable: Permission denied"
    assert rejected["a/4.jpg"] == "too large: more than 0 MiB"


NOBODY = 65534  # an ordinary user: root may read everything


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_files_and_folders_without_permission():
    # Not tmp_path, which lies where only its owner gets to.
    with tempfile.TemporaryDirectory() as name:
        names = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "closed/1.jpg", "names_only/1.jpg")
        source = write(Path(name) / "source", dict.fromkeys(names, b"x") | {"fixes.csv": b"path,label\n"})
        settings, user = data(source, label_fixes=str(source / "fixes.csv")), os.geteuid()
        modes = {source / "a/2.jpg": 0, source / "closed": 0, source / "names_only": 0o444, Path(name): 0o755}
        try:
            for file, mode in modes.items():
                file.chmod(mode)
            os.seteuid(user or NOBODY)
            listing = list_images(settings)
            answer = decode_file(source / "a/2.jpg", DecodeConfig(16, "none", 1.0), Path(name) / "cache")
        finally:
            os.seteuid(user)
            for file in modes:
                file.chmod(0o700)
    assert answer == ("", "unreadable: Permission denied")
    assert [one.path for one in listing.photographs] == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert listing.rejected == dict.fromkeys(("closed", "names_only/1.jpg"), "unreadable: Permission denied")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_only(source, tmp_path, monkeypatch, capsys):
    decode(source, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    decode(source, tmp_path / "cache")
    shown = sys.stderr.getvalue()
    assert "photographs: 100%" in shown
    assert "22/22 [" in shown
    assert "img/s]" in shown
