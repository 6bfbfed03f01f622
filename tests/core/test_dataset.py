"""Reading the processed dataset: a valid one's content, and the message for each kind of damage."""

import numpy as np
import pytest

from stages.core.dataset import IMAGES, MANIFEST, load_dataset, natural_sort_key
from stages.core.files import FileFormatError

ROWS = (
    "path,label,group,split,sha256\n"
    "a.jpg,Type_10,g,train,0\nb.jpg,Type_2,h,val,1\nc.jpg,Type_2,i,test,2\n"
)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / IMAGES, np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3))
    (tmp_path / MANIFEST).write_text(ROWS, encoding="utf-8")
    return tmp_path


def test_load_dataset_gives_images_labels_and_splits(folder):
    dataset = load_dataset(folder)
    assert dataset.images.shape == (3, 4, 4, 3)
    assert isinstance(dataset.images, np.memmap)
    assert dataset.image_size == 4
    assert dataset.classes == ("Type_2", "Type_10")
    assert dataset.labels.tolist() == [1, 0, 0]
    assert dataset.split_rows("val").tolist() == [1]


def test_unknown_split_is_refused(folder):
    with pytest.raises(ValueError, match="expected a split out of train, val, test, got 'dev'"):
        load_dataset(folder).split_rows("dev")


def test_class_names_stay_text(folder):
    (folder / MANIFEST).write_text(
        ROWS.replace("Type_10", "NA").replace("Type_2", "1"), encoding="utf-8"
    )
    assert load_dataset(folder).classes == ("1", "NA")


def test_natural_sort_order():
    names = ["Type_10", "b", "Type_2", "a", "2", "10", "Type_02", "", "²"]
    assert sorted(names, key=natural_sort_key) == [
        "",
        "2",
        "10",
        "a",
        "b",
        "Type_02",
        "Type_2",
        "Type_10",
        "²",
    ]


@pytest.mark.parametrize("name", [IMAGES, MANIFEST])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        FileFormatError, match=f"{name}: expected a file written by preprocess, got none"
    ):
        load_dataset(folder)


def test_truncated_images_are_refused(folder):
    (folder / IMAGES).write_bytes((folder / IMAGES).read_bytes()[:-1])
    with pytest.raises(FileFormatError, match=r"images\.npy: expected a NumPy array, got"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS + "d.jpg,Type_2,j,test,3\n", r"expected uint8 of shape \(4, H, W, 3\)"),
        (
            ROWS.replace("val", "dev"),
            "split: expected images in train, val, test, got dev, test, train",
        ),
        (ROWS.replace("test", "val"), "split: expected images in train, val, test, got train, val"),
        (ROWS.replace("Type_10", ""), "row 1: label: expected a value, got none"),
        (ROWS.replace("Type_10", "\0"), "a NUL character"),
        (ROWS.replace("b.jpg", "a.jpg"), r"expected one row per path, got two of a\.jpg"),
        (ROWS.replace(",h,", ",g,"), "expected each group in one split, got g in several"),
        (ROWS.replace(",val,1", ",val,1,2"), "Expected 5 fields in line 3, saw 6"),
        ("", "No columns"),
        (
            ROWS.replace("group,", "").replace(",g,", ",").replace(",h,", ",").replace(",i,", ","),
            "got none named group",
        ),
    ],
)
def test_manifest_that_does_not_fit_is_refused(folder, rows, message):
    (folder / MANIFEST).write_text(rows, encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)
