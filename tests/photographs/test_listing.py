"""Which files are taken for photographs, under which label: every layout, every refusal, every table."""

import os
from collections import Counter
from pathlib import Path

import pytest

from stages.photographs.listing import SourceError, list_images
from tests.helpers.image_files import data, write
from tests.helpers.kaggle import COUNTS, kaggle_names


def labels(listing) -> dict[str, str]:
    return {one.path: one.label for one in listing.photographs}


def test_class_folders_at_any_depth(tmp_path):
    write(
        tmp_path,
        {"b/1.jpg": b"", "deep/er/a/1.JPG": b"", "b/sub/c/2.png": b"", "notes.txt": b"", "b/.DS_Store": b"", "x/y.csv": b""},
    )
    listing = list_images(data(tmp_path))
    assert labels(listing) == {"b/1.jpg": "b", "b/sub/c/2.png": "c", "deep/er/a/1.JPG": "a"}
    assert [one.path for one in listing.photographs] == sorted(labels(listing))
    assert (listing.rejected, listing.other_files) == ({}, 3)


def test_every_file_is_accounted_for(tmp_path):
    outside = write(tmp_path / "outside", {"secret.jpg": b"", "folder/a.jpg": b""})
    source = write(tmp_path / "source", {"a/1.jpg": b"", "b/1.jpg": b"", "b/list.txt": b"", "b/none": b"", "loose.jpg": b""})
    (source / "a" / "out.jpg").symlink_to(outside / "secret.jpg")
    (source / "a" / "gone.jpg").symlink_to(source / "a" / "nothing.jpg")
    (source / "a" / "loop.jpg").symlink_to(source / "a" / "loop.jpg")
    (source / "a" / "inside.jpg").symlink_to(source / "b" / "1.jpg")
    (source / "c").symlink_to(outside / "folder")
    os.mkfifo(source / "a" / "pipe.jpg")
    (source / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    listing = list_images(data(source))
    assert labels(listing) == {"a/1.jpg": "a", "a/inside.jpg": "a", "b/1.jpg": "b"}
    assert listing.rejected == {
        "a/caf\\xe9.jpg": "name: not UTF-8",
        "a/gone.jpg": "link: broken",
        "a/loop.jpg": "link: broken",
        "a/out.jpg": "link: leaves the source",
        "a/pipe.jpg": "not a file: a device, pipe, socket or folder",
        "b/list.txt": "not a photograph: by its name, .txt",
        "b/none": "not a photograph: by its name, no suffix",
        "c": "link: to a folder",
        "loose.jpg": "no class: lies outside the class folders",
    }


OFFICIAL = {
    "train/train/Type_1/0.jpg": b"",
    "train/train/Type_2/0.jpg": b"",
    "test/test/0.jpg": b"",
    "test/test/1.jpg": b"",
    "solution_stg1_release.csv": b"image_name,Type_1,Type_2\n0.jpg,0,1\n2.jpg,1,0\n",
}


def test_official_test_is_left_alone_or_taken(tmp_path):
    source = write(tmp_path, OFFICIAL)
    listing = list_images(data(source))
    assert set(labels(listing).values()) == {"Type_1", "Type_2"}
    assert (len(listing.photographs), listing.official_test) == (2, 2)
    listing = list_images(data(source, test="official"))
    assert labels(listing)["test/test/0.jpg"] == "Type_2"
    assert [one.split for one in listing.photographs] == ["test", "", ""]
    assert listing.rejected == {
        "test/2.jpg": "missing: named in solution_stg1_release.csv",
        "test/test/1.jpg": "no class: not in solution_stg1_release.csv",
    }


def test_official_test_needs_its_solution(tmp_path):
    source = write(tmp_path, {path: content for path, content in OFFICIAL.items() if "solution" not in path})
    assert len(list_images(data(source)).photographs) == 2, "never a class named test"
    with pytest.raises(SourceError, match=r"data\.test: official: expected .* got 2 pictures and 0 such files"):
        list_images(data(source, test="official"))
    write(source, {"solution_stg1_release.csv": b"image_name,Type_1,Type_2\n0.jpg,1,1\n"})
    with pytest.raises(SourceError, match="line 2: expected 1 for exactly one class, got 2"):
        list_images(data(source, test="official"))


def test_table(tmp_path):
    table = b"path,label,group,split\na/1.jpg,x,p1,train\nb/1.jpg,y,p1,\nb/2.jpg,y,p2,test\ngone.jpg,y,,\n"
    write(tmp_path, {"a/1.jpg": b"", "b/1.jpg": b"", "b/2.jpg": b"", "b/3.jpg": b"", "all.csv": table})
    listing = list_images(data(tmp_path, table="all.csv"))
    found = [(one.path, one.label, one.patient, one.split) for one in listing.photographs]
    assert found == [("a/1.jpg", "x", "p1", "train"), ("b/1.jpg", "y", "p1", ""), ("b/2.jpg", "y", "p2", "test")]
    assert listing.rejected == {"gone.jpg": "missing: no such file"}


def test_a_table_leads_nowhere_outside(tmp_path):
    outside = write(tmp_path / "outside", {"1.jpg": b""})
    source = write(tmp_path / "source", {"a/1.jpg": b"", "a/2.jpg": b""})
    (source / "out").symlink_to(outside)
    (source / "in").symlink_to(source / "a")
    write(source, {"t.csv": b"path,label\na/1.jpg,x\nin/2.jpg,y\nout/1.jpg,y\na/1.jpg/2.jpg,y\n"})
    listing = list_images(data(source, table="t.csv"))
    assert labels(listing) == {"a/1.jpg": "x", "in/2.jpg": "y"}
    assert listing.rejected == {"a/1.jpg/2.jpg": "unreadable: Not a directory", "out/1.jpg": "link: leaves the source"}


@pytest.mark.parametrize("key", ["table", "exclude", "groups"])
@pytest.mark.parametrize("outside", ["../t.csv", "/t.csv"])
def test_tables_lie_where_dvc_watches_them(tmp_path, key, outside):
    write(tmp_path, {"t.csv": b"path,label,patient\na/1.jpg,a,p\n", "source/a/1.jpg": b"", "source/b/1.jpg": b""})
    with pytest.raises(SourceError, match=rf"data\.{key}: expected a CSV file in the source folder .*source, got {outside}"):
        list_images(data(tmp_path / "source", **{key: outside}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,class\na.jpg,x\n", r"expected the columns path, label, got \['path', 'class'\]"),
        ("path,label\na\0.jpg,x\n", "(expected a path below the source|expected a CSV table)"),
        ("path,label\n../a.jpg,x\n", "line 2: expected a path below the source, got '../a.jpg'"),
        ("path,label\n/etc/a.jpg,x\n", "expected a path below the source"),
        ("path,label\na.jpg,x\na.jpg,y\n", "line 3: expected a new path"),
        ("path,label\na.jpg,\n", "line 2: expected a new path, a label"),
        ("path,label,split\na.jpg,x,dev\n", "'dev'"),
        ("path,label\na.jpg,x,y,z\n", "line 2: expected 2 fields, got more"),
        ("", "expected the columns path, label, got None"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    write(tmp_path, {"a.jpg": b"", "t.csv": table.encode()})
    with pytest.raises(SourceError, match=message):
        list_images(data(tmp_path, table="t.csv"))


def test_sources_that_are_none(tmp_path):
    write(tmp_path, {"file.txt": b"", "empty/x": b"", "one/a/1.jpg": b"", "one/a/2.jpg": b""})
    for source, message in {
        "missing": "expected a folder of photographs, got nothing there",
        "file.txt": "got a file",
        "empty": "expected photographs of at least two classes, got 0 photographs of 0 classes",
        "one": r"got 2 photographs of 1 class \(a\)",
    }.items():
        with pytest.raises(SourceError, match=r"data\.source: .*" + message):
            list_images(data(tmp_path / source))
    (tmp_path / "linked").mkdir()
    for name in "ab":
        (tmp_path / "linked" / name).symlink_to(tmp_path / "one/a")
    with pytest.raises(SourceError, match=r"got 0 .*, and 2 that can't be used, the first is a \(link: to a folder\)"):
        list_images(data(tmp_path / "linked"))


def test_fixes_exclusions_and_patients(tmp_path):
    source = write(
        tmp_path / "source",
        {
            **{f"{label}/{n}.jpg": b"" for label in "ab" for n in range(4)},
            "exclude.csv": b"path\na/0.jpg\na/9.jpg\n",
            "patients.csv": b"path,patient\na/1.jpg,p7\n",
        },
    )
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("path,label\na/2.jpg,b\na/8.jpg,b\n")
    settings = {"exclude": "exclude.csv", "label_fixes": str(fixes), "groups": "patients.csv", "group_pattern": r"(\d)\.jpg"}
    listing = list_images(data(source, **settings))
    assert listing.rejected == {"a/0.jpg": "excluded: by exclude.csv"}
    assert listing.excluded == listing.label_fixes == {"applied": 1, "not_found": 1}
    assert labels(listing)["a/2.jpg"] == "b"
    assert {one.path: one.patient for one in listing.photographs if one.label == "a"} == {"a/1.jpg": "p7", "a/3.jpg": "3"}
    fixes.write_text("path,label\na/2.jpg,Type_9\n")
    with pytest.raises(SourceError, match=r"a/2\.jpg: expected a class out of a, b, got 'Type_9'"):
        list_images(data(source, **settings))
    with pytest.raises(SourceError, match=r"patients\.csv: expected a CSV table, got an error: .*No such file"):
        list_images(data(source / "a", groups="patients.csv"))
    write(source, {"patients.csv": b"path,patient\nc/1.jpg,p7\n"})
    with pytest.raises(SourceError, match=r"data\.groups: .*expected paths of the source's photographs, got none of 8"):
        list_images(data(source, groups="patients.csv"))
    with pytest.raises(SourceError, match=r"data\.group_pattern: expected a match .*, got none in 8: '\(C\\\\d\+\)'"):
        list_images(data(source, group_pattern=r"(C\d+)"))
    for pattern, message in {
        "(": "expected a regular expression, got",
        "C": r"expected one \(group\) that names the patient",
    }.items():
        with pytest.raises(SourceError, match=r"data\.group_pattern: " + message):
            list_images(data(source, group_pattern=pattern))


@pytest.mark.parametrize("invented", [True, False], ids=["invented names", "true names"])
@pytest.mark.parametrize(
    "folders",
    [
        {"train": "train/train/Type_{0}", "additional": "additional_Type_{0}_v2/Type_{0}"},
        {"train": "train/Type_{0}", "additional": "additional/Type_{0}"},
    ],
    ids=["as unzipped", "older"],
)
def test_kaggle_tree(tmp_path, monkeypatch, folders, invented):
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
    write(tmp_path, {f"test/test/{n}.jpg": b"" for n in range(512)})
    write(tmp_path, {f"test_stg2/{n}.jpg": b"" for n in range(3)})  # unpacked, though nobody has their labels
    write(
        tmp_path,
        {name: b"" for name in ("solution_stg1_release.csv", "fixed_labels_v2.csv", "removed_files.csv", "test_stg2.7z")},
    )
    listing = list_images(data(tmp_path))
    assert len(listing.photographs) == 8215
    assert (listing.official_test, listing.other_files, listing.rejected) == (512, 4 + 3, {})
    train = Counter(one.label for one in listing.photographs if one.path.startswith("train/"))
    further = Counter(one.label for one in listing.photographs if not one.path.startswith("train/"))
    assert tuple(further[f"Type_{k}"] for k in (1, 2, 3)) == COUNTS["additional"]
    assert tuple(train[f"Type_{k}"] for k in (1, 2, 3)) == (252, 780, 449)
    assert listing.label_fixes["applied"] == 3
    base_names = Counter(Path(one.path).name for one in listing.photographs)
    assert sum(count > 1 for count in base_names.values()) > 1000, "names recur, paths don't"
