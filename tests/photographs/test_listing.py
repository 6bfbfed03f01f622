"""Which files are listed as images, under which label: folder layouts, rejected files, tables."""

import os
from collections import Counter
from pathlib import Path

import pytest

from stages.photographs.listing import list_images
from stages.photographs.tables import LABEL_FIXES, SourceError
from tests.helpers.image_files import data_params, write_files
from tests.helpers.kaggle import COUNTS, kaggle_names
from tests.helpers.repository import ROOT


def labels(index) -> dict[str, str]:
    return {record.path: record.label for record in index.images}


def test_class_is_parent_folder_at_any_depth(tmp_path):
    write_files(
        tmp_path,
        {
            "b/1.jpg": b"",
            "deep/er/a/1.JPG": b"",
            "b/sub/c/2.png": b"",
            "notes.txt": b"",
            "b/.DS_Store": b"",
            "x/y.csv": b"",
        },
    )
    index = list_images(data_params(tmp_path))
    assert labels(index) == {"b/1.jpg": "b", "b/sub/c/2.png": "c", "deep/er/a/1.JPG": "a"}
    assert [record.path for record in index.images] == sorted(labels(index))
    assert (index.rejected, index.other_files) == ({}, 3)


def test_files_that_are_no_images_are_rejected_with_reason(tmp_path):
    outside = write_files(tmp_path / "outside", {"secret.jpg": b"", "folder/a.jpg": b""})
    source = write_files(
        tmp_path / "source",
        {"a/1.jpg": b"", "b/1.jpg": b"", "b/list.txt": b"", "b/none": b"", "loose.jpg": b""},
    )
    (source / "a" / "out.jpg").symlink_to(outside / "secret.jpg")
    (source / "a" / "gone.jpg").symlink_to(source / "a" / "nothing.jpg")
    (source / "a" / "loop.jpg").symlink_to(source / "a" / "loop.jpg")
    (source / "a" / "inside.jpg").symlink_to(source / "b" / "1.jpg")
    (source / "c").symlink_to(outside / "folder")
    os.mkfifo(source / "a" / "pipe.jpg")
    (source / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    index = list_images(data_params(source))
    assert labels(index) == {"a/1.jpg": "a", "a/inside.jpg": "a", "b/1.jpg": "b"}
    assert index.rejected == {
        "a/caf\\xe9.jpg": "name: not UTF-8",
        "a/gone.jpg": "link: broken",
        "a/loop.jpg": "link: broken",
        "a/out.jpg": "link: leaves the source",
        "a/pipe.jpg": "not a file: a device, pipe, socket or folder",
        "b/list.txt": "not an image: by its name, .txt",
        "b/none": "not an image: by its name, no suffix",
        "c": "link: to a folder",
        "loose.jpg": "no class: lies outside the class folders",
    }


def test_source_with_marker_is_synthetic(tmp_path):
    write_files(tmp_path, {"a/1.jpg": b"", "b/1.jpg": b""})
    assert not list_images(data_params(tmp_path)).synthetic
    write_files(tmp_path, {"SYNTHETIC.txt": b""})
    assert list_images(data_params(tmp_path)).synthetic


OFFICIAL = {
    "train/train/Type_1/0.jpg": b"",
    "train/train/Type_2/0.jpg": b"",
    "test/test/0.jpg": b"",
    "test/test/1.jpg": b"",
    "solution_stg1_release.csv": b"image_name,Type_1,Type_2\n0.jpg,0,1\n2.jpg,1,0\n",
}


def test_official_test_images_are_used_on_demand_only(tmp_path):
    source = write_files(tmp_path, OFFICIAL)
    index = list_images(data_params(source))
    assert set(labels(index).values()) == {"Type_1", "Type_2"}
    assert (len(index.images), index.official_test) == (2, 2)
    index = list_images(data_params(source, test="official"))
    assert labels(index)["test/test/0.jpg"] == "Type_2"
    assert [record.split for record in index.images] == ["test", "", ""]
    assert index.rejected == {
        "test/2.jpg": "missing: named in solution_stg1_release.csv",
        "test/test/1.jpg": "no class: not in solution_stg1_release.csv",
    }


def test_official_test_requires_solution(tmp_path):
    source = write_files(
        tmp_path, {path: content for path, content in OFFICIAL.items() if "solution" not in path}
    )
    assert len(list_images(data_params(source)).images) == 2, "never a class named test"
    with pytest.raises(
        SourceError, match=r"data\.test: official: expected .* got 2 images and 0 such files"
    ):
        list_images(data_params(source, test="official"))
    write_files(source, {"solution_stg1_release.csv": b"image_name,Type_1,Type_2\n0.jpg,1,1\n"})
    with pytest.raises(SourceError, match="line 2: expected 1 for exactly one class, got 2"):
        list_images(data_params(source, test="official"))


def test_table_gives_label_patient_and_split(tmp_path):
    table = b"path,label,group,split\na/1.jpg,x,p1,train\nb/1.jpg,y,p1,\nb/2.jpg,y,p2,test\ngone.jpg,y,,\n"
    write_files(
        tmp_path, {"a/1.jpg": b"", "b/1.jpg": b"", "b/2.jpg": b"", "b/3.jpg": b"", "all.csv": table}
    )
    index = list_images(data_params(tmp_path, table="all.csv"))
    found = [(record.path, record.label, record.patient, record.split) for record in index.images]
    assert found == [
        ("a/1.jpg", "x", "p1", "train"),
        ("b/1.jpg", "y", "p1", ""),
        ("b/2.jpg", "y", "p2", "test"),
    ]
    assert index.rejected == {"gone.jpg": "missing: no such file"}


def test_table_cannot_name_files_outside_source(tmp_path):
    outside = write_files(tmp_path / "outside", {"1.jpg": b""})
    source = write_files(tmp_path / "source", {"a/1.jpg": b"", "a/2.jpg": b""})
    (source / "out").symlink_to(outside)
    (source / "in").symlink_to(source / "a")
    write_files(
        source, {"t.csv": b"path,label\na/1.jpg,x\nin/2.jpg,y\nout/1.jpg,y\na/1.jpg/2.jpg,y\n"}
    )
    index = list_images(data_params(source, table="t.csv"))
    assert labels(index) == {"a/1.jpg": "x", "in/2.jpg": "y"}
    assert index.rejected == {
        "a/1.jpg/2.jpg": "unreadable: Not a directory",
        "out/1.jpg": "link: leaves the source",
    }


@pytest.mark.parametrize("key", ["table", "exclude", "groups", "label_fixes"])
@pytest.mark.parametrize("name", ["../t.csv", "/t.csv", "missing.csv"])
def test_table_that_is_not_in_the_source_is_refused(tmp_path, key, name):
    write_files(
        tmp_path,
        {
            "t.csv": b"path,label,patient\na/1.jpg,a,p\n",
            "source/a/1.jpg": b"",
            "source/b/1.jpg": b"",
        },
    )
    with pytest.raises(
        SourceError,
        match=rf"data\.{key}: expected a CSV file in the source folder .* or none, got {name}",
    ):
        list_images(data_params(tmp_path / "source", **{key: name}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,class\na.jpg,x\n", "expected the columns path, label, got path, class"),
        ("path,label\na\0.jpg,x\n", "(expected a path below the source|expected a CSV table)"),
        ("path,label\n../a.jpg,x\n", "line 2: expected a path below the source, got '../a.jpg'"),
        ("path,label\n/etc/a.jpg,x\n", "expected a path below the source"),
        ("path,label\na.jpg,x\na.jpg,y\n", "line 3: expected a new path"),
        ("path,label\na.jpg,\n", "line 2: expected a new path, a label"),
        ("path,label,split\na.jpg,x,dev\n", "'dev'"),
        ("path,label\na.jpg,x,y,z\n", "line 2: expected 2 fields, got more"),
        ("", "expected the columns path, label, got none"),
    ],
)
def test_invalid_table_is_refused(tmp_path, table, message):
    write_files(tmp_path, {"a.jpg": b"", "t.csv": table.encode()})
    with pytest.raises(SourceError, match=message):
        list_images(data_params(tmp_path, table="t.csv"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "expected a folder of images, got nothing there"),
        ("file.txt", "got a file"),
        ("empty", "expected images of at least two classes, got 0 images of 0 classes"),
        ("single", r"got 2 images of 1 class \(a\)"),
        ("linked", r"got 0 .*, and 2 that can't be used, the first is a \(link: to a folder\)"),
    ],
)
def test_unusable_source_is_refused(tmp_path, source, message):
    write_files(
        tmp_path,
        {
            "file.txt": b"",
            "empty/x": b"",
            "single/a/1.jpg": b"",
            "single/a/2.jpg": b"",
            "linked/x": b"",
        },
    )
    for name in "ab":
        (tmp_path / "linked" / name).symlink_to(tmp_path / "single/a")
    with pytest.raises(SourceError, match=r"data\.source: .*" + message):
        list_images(data_params(tmp_path / source))


@pytest.fixture
def source(tmp_path):
    """Four images of each of two classes, with a table of exclusions and one of patients."""
    return write_files(
        tmp_path / "source",
        {
            **{f"{label}/{n}.jpg": b"" for label in "ab" for n in range(4)},
            "exclude.csv": b"path\na/0.jpg\na/9.jpg\n",
            "patients.csv": b"path,patient\na/1.jpg,p7\n",
        },
    )


def test_label_fixes_exclusions_and_patients_are_applied(source):
    fixes = source / "fixes.csv"
    fixes.write_text("path,label\na/2.jpg,b\na/8.jpg,b\n")
    p = data_params(
        source,
        exclude="exclude.csv",
        label_fixes="fixes.csv",
        groups="patients.csv",
        group_pattern=r"(\d)\.jpg",
    )
    index = list_images(p)
    assert index.rejected == {"a/0.jpg": "excluded: by exclude.csv"}
    assert index.excluded == index.label_fixes == {"applied": 1, "not_found": 1}
    assert labels(index)["a/2.jpg"] == "b"
    assert {record.path: record.patient for record in index.images if record.label == "a"} == {
        "a/1.jpg": "p7",
        "a/3.jpg": "3",
    }
    fixes.write_text("path,label\na/2.jpg,Type_9\n")
    with pytest.raises(SourceError, match=r"a/2\.jpg: expected a class out of a, b, got 'Type_9'"):
        list_images(p)


def test_patient_table_must_fit_source(source):
    write_files(source, {"patients.csv": b"path,patient\nc/1.jpg,p7\n"})
    with pytest.raises(
        SourceError, match=r"data\.groups: .*expected paths of the source's images, got none of 8"
    ):
        list_images(data_params(source, groups="patients.csv"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(C\d+)", r"expected a match .*, got none in 8: '\(C\\\\d\+\)'"),
        ("(", "expected a regular expression .*, got '\\('"),
        ("C", r"expected a regular expression with one \(group\)"),
    ],
)
def test_invalid_group_pattern_is_refused(source, pattern, message):
    with pytest.raises(SourceError, match=r"data\.group_pattern: " + message):
        list_images(data_params(source, group_pattern=pattern))


@pytest.mark.parametrize("invented", [True, False], ids=["invented names", "true names"])
@pytest.mark.parametrize(
    "folders",
    [
        {"train": "train/train/Type_{0}", "additional": "additional_Type_{0}_v2/Type_{0}"},
        {"train": "train/Type_{0}", "additional": "additional/Type_{0}"},
    ],
    ids=["as unzipped", "older"],
)
def test_kaggle_folders_are_listed_completely(tmp_path, monkeypatch, folders, invented):
    if invented:
        monkeypatch.delenv("COLPOSCOPY_KAGGLE_LISTING", raising=False)
    elif "COLPOSCOPY_KAGGLE_LISTING" not in os.environ:
        pytest.skip("COLPOSCOPY_KAGGLE_LISTING names no list of the challenge's files")
    names = kaggle_names(folders)
    assert len(set(names)) == 8215
    for folder in {Path(name).parent for name in names}:
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        (tmp_path / name).touch()
    write_files(tmp_path, {f"test/test/{n}.jpg": b"" for n in range(512)})
    write_files(
        tmp_path, {f"test_stg2/{n}.jpg": b"" for n in range(3)}
    )  # unzipped; its labels were never published
    tables = (
        "solution_stg1_release.csv",
        "fixed_labels_v2.csv",
        "removed_files.csv",
        "test_stg2.7z",
    )
    write_files(tmp_path, dict.fromkeys(tables, b""))
    monkeypatch.chdir(ROOT)
    index = list_images(data_params(tmp_path, label_fixes=LABEL_FIXES))
    assert len(index.images) == 8215
    assert (index.official_test, index.other_files, index.rejected) == (512, 4 + 3, {})
    train = Counter(record.label for record in index.images if record.path.startswith("train/"))
    additional = Counter(
        record.label for record in index.images if not record.path.startswith("train/")
    )
    assert tuple(additional[f"Type_{k}"] for k in (1, 2, 3)) == COUNTS["additional"]
    assert tuple(train[f"Type_{k}"] for k in (1, 2, 3)) == (252, 780, 449)
    assert index.label_fixes["applied"] == 3
    file_names = Counter(Path(record.path).name for record in index.images)
    assert sum(count > 1 for count in file_names.values()) > 1000, "file names recur, paths don't"
