"""Folders tell the classes, all of them, or are refused; a split of folders is kept or named."""

import unicodedata

import pytest

from stages.photographs.listing import list_images
from stages.photographs.tables import SourceError
from tests.helpers.image_files import data_params, write_files


def write_images(root, *folders: str):
    """Three empty files, which needn't be decoded, in each folder."""
    return write_files(root, {f"{folder}/{n}.jpg": b"" for folder in folders for n in range(3)})


def labels_of(index) -> set[str]:
    return {record.label for record in index.images}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a", "b", "b/sub"], "images in b and in b/sub below it: data.class_pattern names"),
        (["a", "deep/er/b"], "classes at unequal depths, a and deep/er/b"),
        ([f"p{n}" for n in range(51)], r"51 classes \(p0, p1, p2, …\)"),
        (["a/p1", "a/p2", "b/p3", "b/p4"], "none of which lies in two of the folders a, b"),
        (["train", "test"], "only the folders train of a split"),
        (["train", "val"], "only the folders train, val of a split"),
        (["a", "b", "test"], "a folder test among the classes a, b, test: rename it"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, folders, message):
    with pytest.raises(SourceError, match=message):
        list_images(data_params(write_images(tmp_path, *folders)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"c/x/notes.txt": b""}, r"none in c \(other files: 1, the first is c/x/notes.txt\)"),
        ({"c/x/1.xyz": b""}, "none in c .*c/x/1.xyz"),
        ({"c/.hidden.jpg": b""}, "none in c "),
        ({"c/a\nb.jpg": b""}, r"none in c .*a\\x0ab.jpg, name: has control characters\)"),
    ],
)
def test_folder_without_images_next_to_classes_stops_the_stage(tmp_path, files, message):
    write_files(write_images(tmp_path, "a", "b"), files)
    with pytest.raises(SourceError, match=message):
        list_images(data_params(tmp_path))


def test_empty_and_linked_folders_stop_the_stage(tmp_path):
    source = write_images(tmp_path / "source", "a", "b")
    (source / "c").mkdir()
    with pytest.raises(SourceError, match=r"none in c \(it is empty\)"):
        list_images(data_params(source))
    (source / "c").rmdir()
    (source / "c").symlink_to(write_images(tmp_path / "other_disk", "c") / "c")
    with pytest.raises(SourceError, match=r"got c, a link to a folder, whose images would be lost"):
        list_images(data_params(source))


def test_class_names_in_two_normal_forms_are_one_class(tmp_path):
    names = [unicodedata.normalize(form, "gesünder") for form in ("NFC", "NFD")]
    index = list_images(data_params(write_images(tmp_path, *names, "krank")))
    assert labels_of(index) == {"gesünder", "krank"}
    assert len(index.images) == 9


def test_pattern_names_class_and_patient_in_the_path(tmp_path):
    write_images(tmp_path, "a/p1", "a/p2/left", "test/p3", ".hidden")
    write_files(tmp_path, {"loose.jpg": b""})
    patterns = {"class_pattern": "^([^/]+)/", "group_pattern": "^[^/]+/([^/]+)/"}
    index = list_images(data_params(tmp_path, **patterns))
    assert {(r.label, r.patient) for r in index.images} == {
        ("a", "p1"),
        ("a", "p2"),
        ("test", "p3"),
    }
    assert index.rejected == {"loose.jpg": "no class: doesn't match data.class_pattern"}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_split_by_folders_is_kept_on_demand_and_never_lost_in_silence(tmp_path, names):
    write_images(tmp_path, *(f"{split}/{label}" for split in names for label in "ab"))
    index = list_images(data_params(tmp_path))
    assert {record.split for record in index.images} == {""}
    assert [text for text in index.warnings if "data.test: folders keeps it" in text]
    index = list_images(data_params(tmp_path, test="folders"))
    expected = dict(zip(names, ("train", "val", "test"), strict=True))
    assert {(r.path.split("/")[0], r.split) for r in index.images} == set(expected.items())
    assert not index.warnings


def test_split_by_folders_needs_a_test_folder(tmp_path):
    write_images(tmp_path, "train/a", "train/b")
    with pytest.raises(SourceError, match=r"data\.test: folders: expected folders .*, got train"):
        list_images(data_params(tmp_path, test="folders"))
