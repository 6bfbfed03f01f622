"""Every file below a source is a picture, rejected with its reason, or a known bystander."""

import os
import socket

import pytest

from stages.photographs.source_files import find_files
from tests.helpers.image_files import encode, make_image, write_files

JPEG = encode(make_image(0))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (".Trash-1000/files/1.jpg", "hidden"),
        ("a/.ipynb_checkpoints/1-checkpoint.jpg", "hidden"),
        ("a/._1.jpg", "hidden"),
        ("a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "of the system"),
        ("__MACOSX/a/1.jpg", "of the system"),
        ("a/Thumbs.db", "documents"),
        ("a/1.xml", "documents"),
        ("a/1_mask.png", "masks"),
        ("a/Masks/1.png", "masks"),
        ("train/LICENSE", "other files"),
    ],
)
def test_bystanders_are_left_out_by_kind(tmp_path, path, kind):
    write_files(tmp_path, {"a/1.jpg": JPEG, path: JPEG if "LICENSE" not in path else b"MIT"})
    found = find_files(tmp_path)
    assert list(found.pictures) == ["a/1.jpg"]
    assert (found.bystanders, found.rejected) == ({kind: [path]}, {})


@pytest.mark.parametrize("name", ["1.jfif", "1.JPE", "1.avif", "1.dcm", "1", "1.xyz", "2_mask.png"])
def test_pictures_are_known_by_name_or_content(tmp_path, name):
    assert list(find_files(write_files(tmp_path, {f"a/{name}": JPEG})).pictures) == [f"a/{name}"]


def test_unusable_files_are_rejected_with_reason(tmp_path, monkeypatch):
    outside = write_files(tmp_path / "outside", {"secret.jpg": JPEG})
    source = tmp_path / "source"
    write_files(source, dict.fromkeys(("a/1.jpg", "b/1.jpg", "b/none", "b/x.bin"), b""))
    links = {
        "a/out.jpg": outside / "secret.jpg",
        "a/gone.jpg": source / "a/nothing.jpg",
        "a/loop.jpg": source / "a/loop.jpg",
        "a/inside.jpg": source / "b/1.jpg",
        "a/device": "/dev/zero",
    }
    for path, target in links.items():
        (source / path).symlink_to(target)
    os.mkfifo(source / "a" / "pipe.jpg")
    (source / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    monkeypatch.chdir(source / "b")  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        found = find_files(source)
    assert set(found.pictures) == {"a/1.jpg", "a/inside.jpg", "b/1.jpg"}
    special = "not a file: a device, pipe, socket or folder"
    assert found.rejected == {
        "a/caf\\xe9.jpg": "name: not UTF-8",
        "a/device": special,
        "a/gone.jpg": "link: broken",
        "a/loop.jpg": "link: broken",
        "a/out.jpg": "link: leaves the source",
        "a/pipe.jpg": special,
        "b/none": "not an image: by its name, no suffix",
        "b/socket.jpg": special,
        "b/x.bin": "not an image: by its name, .bin",
    }
