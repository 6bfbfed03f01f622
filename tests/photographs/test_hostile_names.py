"""Names and files that could break tables, logs or the reader: kept under their names, or refused in one line."""

import csv
import io
import os
import socket
from pathlib import Path

import pytest

from stages import preprocess
from stages.core.dataset import load_dataset
from stages.photographs.listing import list_images
from stages.photographs.reading import decode_all
from stages.photographs.tables import SourceError
from tests.helpers.image_files import data_params, encode, make_image, write_files
from tests.helpers.preprocessing import SHEETS, set_params

NAMES = (
    'quo"te.jpg', "com,ma;semi.jpg", "<script>alert(1)<.jpg", "<img src=x onerror=alert(1)>.jpg", "-dash.jpg",
    "=1+1.jpg", "+1.jpg", "@sum.jpg",
    "'.jpg", "\\.jpg", "%s{0}.jpg", " leading.jpg", "trailing .jpg", "\U0001f600.jpg", "\u202egpj.exe.jpg",
    "\u2028.jpg", "\ufeff.jpg", "e\u0301.jpg", "\u00e9.jpg", "x..jpg", "\u00e9" * 125 + ".jpg", "x" * 251 + ".jpg",
)  # fmt: skip
CONTROLS = {
    "new\nline": "new\\x0aline",
    "re\rturn": "re\\x0dturn",
    "\x1b[31mred": "\\x1b[31mred",
    "\x7f": "\\x7f",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    set_params(tmp_path)
    return tmp_path


def fill(folders, names) -> dict[str, str]:
    """Images in raw/; path -> class."""
    files = {f"{folder}/{name}": folder for folder in folders for name in names}
    write_files(Path("raw"), {path: encode(make_image(n, 40, 40)) for n, path in enumerate(files)})
    return files


def processed_labels() -> dict[str, str]:
    manifest = load_dataset("data/processed").manifest
    return dict(zip(manifest["path"], manifest["label"], strict=True))


def rejected_reasons() -> dict[str, str]:
    with Path("data/processed/rejected.csv").open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def test_odd_file_names_are_kept(project):
    files = fill("ab", NAMES)
    preprocess.main()
    assert processed_labels() == files
    assert all(Path(name).stat().st_size < 150_000 for name in SHEETS)


@pytest.mark.parametrize(
    "classes",
    [
        ("nan", "None"), ("1", "true"), ("NULL", "null"), ("A", "a"), ("a", "a "), ("Type_1", "Type_01"), ("train", "CON"),
        ('quo"te', "com,ma"), ("<script>", "-dash"), ("=1+1", "@sum"), ("\U0001f600", "\u202egpj"), ("x" * 255, "e\u0301"),
    ],
    ids=ascii,
)  # fmt: skip
def test_odd_class_names_are_kept(project, classes):
    files = fill(classes, [f"{n}.jpg" for n in range(10)])
    if len({path.stat().st_ino for path in Path("raw").iterdir()}) < 2:
        pytest.skip("the file system doesn't distinguish upper and lower case")
    preprocess.main()
    assert processed_labels() == files
    assert set(load_dataset("data/processed").classes) == set(classes)


def test_names_with_control_characters_are_refused_in_one_line(project, capsys):
    """The manifest would have other rows for a carriage return, and a terminal would obey an escape."""
    kept = fill("ab", [f"{n}.jpg" for n in range(10)])
    fill(["a", *CONTROLS], [f"{name}.jpg" for name in CONTROLS])
    set_params(project, max_rejected=1)
    preprocess.main()
    assert processed_labels() == kept
    expected = {
        f"{folder}/{name}.jpg" for folder in ("a", *CONTROLS.values()) for name in CONTROLS.values()
    }
    assert rejected_reasons() == dict.fromkeys(expected, "name: has control characters")
    printed = "".join(capsys.readouterr())
    assert not set(printed.replace("\n", "")) & set("\r\x1b\x7f")


@pytest.mark.parametrize("row", ['a/0.jpg,"x\ry",p', 'a/0.jpg,x,"p\n1"'], ids=["label", "patient"])
def test_control_characters_of_tables_are_refused(tmp_path, row):
    write_files(
        tmp_path,
        {
            "a/0.jpg": b"",
            "a/1.jpg": b"",
            "t.csv": f"path,label,group\n{row}\na/1.jpg,z,p\n".encode(),
        },
    )
    with pytest.raises(
        SourceError,
        match=r"a/0\.jpg: expected a class and a patient without control characters, got '",
    ):
        list_images(data_params(tmp_path, table="t.csv"))
    write_files(tmp_path, {"t.csv": b'path,label\na/0.jpg,x\na/1.jpg,y\n"a/\r.jpg",y\n'})
    assert list_images(data_params(tmp_path, table="t.csv")).rejected == {
        "a/\\x0d.jpg": "name: has control characters"
    }


def test_sockets_and_devices_are_not_opened(tmp_path, monkeypatch):
    source = write_files(tmp_path, {"a/1.jpg": b"", "b/1.jpg": b""})
    (source / "a/device.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(source / "b")  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        index = list_images(data_params(source))
    reason = "not a file: a device, pipe, socket or folder"
    assert index.rejected == {"a/device.jpg": reason, "b/socket.jpg": reason}


def test_files_that_change_after_listing_are_images_or_refused(tmp_path):
    source = write_files(
        tmp_path / "source", {f"{'ab'[n % 2]}/{n}.jpg": encode(make_image(n)) for n in range(6)}
    )
    p = data_params(source, image_size=16)
    records = list_images(p).images
    (source / "a/0.jpg").unlink()
    os.truncate(source / "a/2.jpg", 900)
    with (source / "a/4.jpg").open("ab") as stream:
        stream.write(bytes(5000))
    (source / "b/1.jpg").unlink()
    (source / "b/1.jpg").mkdir()
    decoded = decode_all(records, p, io.BytesIO(), map, tmp_path / "cache")
    assert [record.path for record in decoded.records] == ["a/4.jpg", "b/3.jpg", "b/5.jpg"]
    assert decoded.rejected.pop("a/2.jpg").startswith("truncated: ")
    assert decoded.rejected == {
        "a/0.jpg": "unreadable: No such file or directory",
        "b/1.jpg": "unreadable: Is a directory",
    }
