"""Decoding of many files: order, progress, and files that can't be read."""

import io
import os
import sys
import tempfile
from pathlib import Path

import pytest

from stages.photographs import reading
from stages.photographs.decode_cache import DecodeConfig
from stages.photographs.listing import list_images
from stages.photographs.reading import decode_all, decode_file
from stages.photographs.source_files import find_files
from tests.helpers.image_files import data_params, write_files
from tests.helpers.preprocessing import decode_folder, write_image_folder


@pytest.fixture
def source(tmp_path):
    return write_image_folder(tmp_path / "source")


def test_pixels_are_in_order_of_records(source, tmp_path):
    decoded, pixels = decode_folder(source, tmp_path / "cache")
    paths = [record.path for record in decoded.records]
    assert paths == sorted(paths)
    assert len(pixels) == 20 * 16 * 16 * 3
    assert decoded.thumbnails.shape == (20, 64, 64)
    assert decoded.metadata[0].width == 60
    assert set(decoded.rejected) == {"a/99.jpg", "b/99.jpg"}


def test_files_that_change_after_listing_are_images_or_refused(source, tmp_path, monkeypatch):
    data = data_params(source, image_size=16)
    records = list_images(data).images
    (source / "a/0.jpg").unlink()
    os.truncate(source / "a/2.jpg", 900)
    with (source / "a/4.jpg").open("ab") as stream:
        stream.write(bytes(5000))
    (source / "b/1.jpg").unlink()
    (source / "b/1.jpg").mkdir()
    os.truncate(source / "b/3.jpg", 9000)
    monkeypatch.setattr(reading, "MAX_BYTES", 8999)
    decoded = decode_all(records, data, io.BytesIO(), map, tmp_path / "cache")
    assert "a/4.jpg" in [record.path for record in decoded.records]
    assert decoded.rejected.items() >= {
        ("a/0.jpg", "unreadable: No such file or directory"),
        ("a/2.jpg", "truncated: the end of the pixels is missing"),
        ("b/1.jpg", "unreadable: Is a directory"),
        ("b/3.jpg", "too large: more than 0 MiB"),
    }


UNPRIVILEGED_UID = 65534  # root may read everything


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_files_and_folders_without_permission_are_rejected():
    # Not in tmp_path, which only its owner can enter.
    with tempfile.TemporaryDirectory() as name:
        names = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "closed/1.jpg", "names_only/1.jpg")
        source, user = write_files(Path(name) / "source", dict.fromkeys(names, b"x")), os.geteuid()
        config = DecodeConfig(16, "none")
        modes = {"a/2.jpg": 0, "closed": 0, "names_only": 0o444, "..": 0o755}
        try:
            for path, mode in modes.items():
                (source / path).chmod(mode)
            os.seteuid(user or UNPRIVILEGED_UID)
            found = find_files(source)
            result = decode_file(source / "a/2.jpg", config, Path(name) / "cache")
        finally:
            os.seteuid(user)
            for path in modes:
                (source / path).chmod(0o700)
    assert result == ("", "unreadable: Permission denied", "")
    assert list(found.pictures) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    reason = "unreadable: Permission denied"
    assert found.rejected == {"names_only/1.jpg": reason}
    assert found.closed == {"closed": reason}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_is_shown_on_terminals_only(source, tmp_path, monkeypatch, capsys):
    decode_folder(source, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    decode_folder(source, tmp_path / "cache")
    assert "22/22 [" in sys.stderr.getvalue()
