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
from stages.photographs.reading import decode_file
from tests.helpers.image_files import data_params, write_files
from tests.helpers.image_folders import decode_folder, write_image_folder


@pytest.fixture
def source(tmp_path):
    return write_image_folder(tmp_path / "source")


def test_pixels_are_in_order_of_records(source, tmp_path):
    decoded, pixels = decode_folder(source, tmp_path / "cache")
    assert [record.path for record in decoded.records] == sorted(
        record.path for record in decoded.records
    )
    assert len(pixels) == 20 * 16 * 16 * 3
    assert decoded.thumbnails.shape == (20, 64, 64)
    assert decoded.metadata[0].width == 60
    assert set(decoded.rejected) == {"a/99.jpg", "b/99.jpg"}


def test_unreadable_and_too_large_files_are_rejected(source, tmp_path, monkeypatch):
    original = Path.open

    def open_file(self, *arguments, **options):
        if self.name == "3.jpg":
            raise PermissionError(13, "Permission denied")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_file)
    (source / "a/4.jpg").write_bytes(bytes(9000))
    monkeypatch.setattr(reading, "MAX_BYTES", 8999)
    rejected = decode_folder(source, tmp_path / "cache")[0].rejected
    assert rejected["b/3.jpg"] == "unreadable: Permission denied"
    assert rejected["a/4.jpg"] == "too large: more than 0 MiB"


UNPRIVILEGED_UID = 65534  # root may read everything


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_files_and_folders_without_permission_are_rejected():
    # Not in tmp_path, which only its owner can enter.
    with tempfile.TemporaryDirectory() as name:
        names = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "closed/1.jpg", "names_only/1.jpg")
        source = write_files(
            Path(name) / "source", dict.fromkeys(names, b"x") | {"fixes.csv": b"path,label\n"}
        )
        p, user = data_params(source), os.geteuid()
        modes = {
            source / "a/2.jpg": 0,
            source / "closed": 0,
            source / "names_only": 0o444,
            Path(name): 0o755,
        }
        try:
            for file, mode in modes.items():
                file.chmod(mode)
            os.seteuid(user or UNPRIVILEGED_UID)
            index = list_images(p)
            result = decode_file(source / "a/2.jpg", DecodeConfig(16, "none"), Path(name) / "cache")
        finally:
            os.seteuid(user)
            for file in modes:
                file.chmod(0o700)
    assert result == ("", "unreadable: Permission denied", "")
    assert [record.path for record in index.images] == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert index.rejected == dict.fromkeys(
        ("closed", "names_only/1.jpg"), "unreadable: Permission denied"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_is_shown_on_terminals_only(source, tmp_path, monkeypatch, capsys):
    decode_folder(source, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    decode_folder(source, tmp_path / "cache")
    shown = sys.stderr.getvalue()
    assert "images: 100%" in shown
    assert "22/22 [" in shown
    assert "img/s]" in shown
