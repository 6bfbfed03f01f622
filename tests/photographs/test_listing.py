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


def write_empty_files(root: Path, *paths: str) -> Path:
    return write_files(root, dict.fromkeys(paths, b""))


def test_class_is_parent_folder_at_one_depth_of_all(tmp_path):
    images = ("additional/a/1.JPG", "additional/b/1.png", "train/train/a/2.jpg")
    write_empty_files(tmp_path, *images, "loose.jpg", "notes.txt", "b/.DS_Store", "x/y.csv")
    index = list_images(data_params(tmp_path))
    assert list(labels(index).items()) == list(zip(images, "aba", strict=True))
    assert index.rejected == {"loose.jpg": "no class: lies outside the class folders"}
    assert index.bystanders == {"documents": ["notes.txt", "x/y.csv"], "hidden": ["b/.DS_Store"]}
    assert not index.synthetic
    write_empty_files(tmp_path, "SYNTHETIC.txt")
    assert list_images(data_params(tmp_path)).synthetic


SOLUTION = b"image_name,Type_1,Type_2\n0.jpg,0,1\n2.jpg,1,0\n"


def test_official_test_images_are_used_on_demand_only(tmp_path):
    train = ("train/train/Type_1/0.jpg", "train/train/Type_2/0.jpg")
    write_empty_files(tmp_path, *train, "test/test/0.jpg", "test/test/1.jpg")
    official = data_params(tmp_path, test="official")
    with pytest.raises(SourceError, match=r"data\.test: .* got 2 images and 0 such files"):
        list_images(official)
    write_files(tmp_path, {"solution_stg1_release.csv": SOLUTION})
    index = list_images(data_params(tmp_path))
    assert labels(index) == {path: path.split("/")[2] for path in train}
    assert index.official_test == 2
    index = list_images(official)
    assert labels(index)["test/test/0.jpg"] == "Type_2"
    assert [record.split for record in index.images] == ["test", "", ""]
    assert index.rejected == {
        "test/2.jpg": "missing: named in solution_stg1_release.csv",
        "test/test/1.jpg": "no class: not in solution_stg1_release.csv",
    }
    write_files(tmp_path, {"solution_stg1_release.csv": SOLUTION.replace(b"0,1", b"1,1")})
    with pytest.raises(SourceError, match="line 2: expected 1 for exactly one class, got 2"):
        list_images(official)
    write_files(tmp_path, {"solution_stg1_release.csv": SOLUTION + b"2.jpg,0,1\n"})
    with pytest.raises(SourceError, match=r"line 4: expected one class of 2\.jpg, got another"):
        list_images(official)


def test_table_gives_label_patient_and_split(tmp_path):
    outside = write_empty_files(tmp_path / "outside", "1.jpg")
    source = write_empty_files(tmp_path / "source", "a/1.jpg", "a/2.jpg", "b/2.jpg", "b/3.jpg")
    (source / "out").symlink_to(outside)
    (source / "in").symlink_to(source / "a")
    rows = (
        "Path,Label,Patient,split", "a/1.jpg,x,p1,train", "in/2.jpg,y,p1,", "b/2.jpg,y,p2,test",
        "gone.jpg,y,,", "out/1.jpg,y,,", "a/1.jpg/2.jpg,y,,", '"a/\r.jpg",y,,',
    )  # fmt: skip
    (source / "all.csv").write_text("\n".join(rows), newline="")
    index = list_images(data_params(source, table="all.csv"))
    assert [(r.path, r.label, r.patient, r.split) for r in index.images] == [
        ("a/1.jpg", "x", "p1", "train"),
        ("b/2.jpg", "y", "p2", "test"),
        ("in/2.jpg", "y", "p1", ""),
    ]
    assert index.rejected == {
        "a/1.jpg/2.jpg": "unreadable: Not a directory",
        "a/\\x0d.jpg": "name: has control characters",
        "gone.jpg": "missing: no such file",
        "out/1.jpg": "link: leaves the source",
    }


@pytest.mark.parametrize("key", ["table", "exclude", "groups", "label_fixes"])
@pytest.mark.parametrize("name", ["../t.csv", "/t.csv", "missing.csv"])
def test_table_that_is_not_in_the_source_is_refused(tmp_path, key, name):
    write_empty_files(tmp_path, "t.csv", "source/a/1.jpg", "source/b/1.jpg")
    message = rf"data\.{key}: expected a CSV file in the source folder .* or none, got {name}"
    with pytest.raises(SourceError, match=message):
        list_images(data_params(tmp_path / "source", **{key: name}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,class\na.jpg,x\n", "expected the columns path, label, got path, class"),
        ("path,label\na\0.jpg,x\n", "expected a CSV table"),
        ("path,label\n../a.jpg,x\n", "line 2: expected a path below the source, got '../a.jpg'"),
        ("path,label\n/etc/a.jpg,x\n", "expected a path below the source"),
        ("path,label\na.jpg,x\na.jpg,y\n", "line 3: expected what line 2 says"),
        ("path,label\na.jpg,\n", "line 2: expected a label"),
        ("path,label\nc.jpg,x\n", r"such as a\.jpg, got none in 1 rows: line 2 has c\.jpg"),
        ("path,label,split\na.jpg,x,dev\n", "'dev'"),
        ('path,label\na.jpg,"x\ry"\nb.jpg,z\n', r"a\.jpg: expected .* without control char"),
        ('path,label,group\na.jpg,x,"p\n1"\nb.jpg,z\n', r"a\.jpg: expected .* without control"),
    ],
)
def test_invalid_table_is_refused(tmp_path, table, message):
    write_files(tmp_path, {"a.jpg": b"", "b.jpg": b"", "t.csv": table.encode()})
    with pytest.raises(SourceError, match=message):
        list_images(data_params(tmp_path, table="t.csv"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "expected a folder of images, got nothing there"),
        ("file.txt", "got a file"),
        ("empty", "expected images of at least two classes, got 0 images of 0 classes"),
        ("single", r"got 2 images of 1 class \(a\)"),
        ("loose", r"got 0 .*, and 2 that can't be used, the first is 1\.jpg \(no class: "),
    ],
)
def test_unusable_source_is_refused(tmp_path, source, message):
    write_empty_files(tmp_path, "file.txt", "empty/x", "single/a/1.jpg", "single/a/2.jpg")
    write_empty_files(tmp_path, "loose/1.jpg", "loose/2.jpg")
    with pytest.raises(SourceError, match=r"data\.source: .*" + message):
        list_images(data_params(tmp_path / source))


@pytest.fixture
def source(tmp_path):
    """Four images of each of two classes, with tables."""
    write_empty_files(tmp_path, *(f"{label}/{n}.jpg" for label in "ab" for n in range(4)))
    tables = {
        "exclude.csv": b"path\na/0.jpg\na/9.jpg\n",
        "fixes.csv": b"path,label\na/2.jpg,b\na/8.jpg,b\n",
        "unknown.csv": b"path,label\na/2.jpg,Type_9\n",
        "patients.csv": b"path,patient\na/1.jpg,p7\n",
        "others.csv": b"path,patient\nc/1.jpg,p7\n",
        "blank.csv": b"path,patient\na/1.jpg,NA\n",
    }
    return write_files(tmp_path, tables)


def test_label_fixes_exclusions_and_patients_are_applied(source):
    tables = {"exclude": "exclude.csv", "label_fixes": "fixes.csv", "groups": "patients.csv"}
    index = list_images(data_params(source, **tables, group_pattern=r"(\d)\.jpg"))
    assert index.rejected == {"a/0.jpg": "excluded: by exclude.csv"}
    assert index.excluded == index.label_fixes == {"applied": 1, "not_found": 1}
    for text in ("1 row of exclude.csv matches no image (line 3: a/9.jpg)", "others.csv has a col"):
        assert [warning for warning in index.warnings if warning.startswith(text)]
    assert [(r.path, r.label, r.patient) for r in index.images[:3]] == [
        ("a/1.jpg", "a", "p7"),
        ("a/2.jpg", "b", "2"),
        ("a/3.jpg", "a", "3"),
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label_fixes", "unknown.csv", r"a/2\.jpg: expected a class out of a, b, got 'Type_9'"),
        ("groups", "others.csv", r"data\.groups: .* such as a/0\.jpg, got none in 1 rows: line 2"),
        ("groups", "blank.csv", r"data\.groups: .* expected patients .*, got none for 8 images"),
        ("exclude", "others.csv", r"data\.exclude: .* got none in 1 rows: line 2 has c/1\.jpg"),
        ("group_pattern", r"(C\d+)", r"data\.group_pattern: .* got none in 8: '\(C\\\\d\+\)'"),
        ("group_pattern", "(", r"data\.group_pattern: expected a regular expression .*, got '\('"),
        ("group_pattern", "C", r"data\.group_pattern: .* with one \(group\), the patient, got 'C'"),
    ],
)
def test_table_or_pattern_that_does_not_fit_is_refused(source, key, value, message):
    with pytest.raises(SourceError, match=message):
        list_images(data_params(source, **{key: value}))


def test_further_columns_of_patients_are_subgroups(source):
    table = "path,patient,Device ,,note\na/1.jpg,p7,A,9,n/a\nb\\2.JPG,p8,,9,x\n"
    write_files(source, {"patients.csv": table.encode()})
    index = list_images(data_params(source, groups="patients.csv"))
    found = {record.path: record.subgroups for record in index.images if record.subgroups}
    assert found == {"a/1.jpg": {"Device": "A"}, "b/2.jpg": {"note": "x"}}
    for row, message in (
        ("a/1.jpg,p7,B,9,n/a", "line 4: expected what line 2 says about .*, Device 'A', got 'B'"),
        ('b/3.jpg,p9,"A\x07",,', r"data\.groups: b/3\.jpg: expected .* without control characters"),
    ):
        write_files(source, {"patients.csv": (table + row).encode()})
        with pytest.raises(SourceError, match=message):
            list_images(data_params(source, groups="patients.csv"))


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
    ignored = ["fixed_labels_v2.csv", "removed_files.csv", "solution_stg1_release.csv"]
    ignored += ["test_stg2.7z", *(f"test_stg2/{n}.jpg" for n in range(3))]
    write_empty_files(tmp_path, *names, *ignored, *(f"test/test/{n}.jpg" for n in range(512)))
    monkeypatch.chdir(ROOT)
    index = list_images(data_params(tmp_path, label_fixes=LABEL_FIXES))
    assert len(set(names)) == len(index.images) == 8215
    assert (index.official_test, index.rejected) == (512, {})
    kinds = {kind: len(paths) for kind, paths in index.bystanders.items()}
    assert kinds == {"documents": 3, "in use": 1, "unlabeled": 3}
    assert index.label_fixes["applied"] == 3
    counts = Counter((r.path.startswith("train/"), r.label) for r in index.images)
    types = ("Type_1", "Type_2", "Type_3")
    assert tuple(counts[False, name] for name in types) == COUNTS["additional"]
    assert tuple(counts[True, name] for name in types) == (252, 780, 449), "after the corrections"
    file_names = Counter(Path(record.path).name for record in index.images)
    assert sum(count > 1 for count in file_names.values()) > 1000, "file names recur, paths don't"
