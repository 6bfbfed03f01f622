"""Tables are read as Excel saves them; rows find their files, and contradict each other nowhere."""

import pytest

from stages.photographs.tables import PathLookup, SourceError, match_rows, patient_name, read_table

TEXT = "path,patient\na/ä 1.jpg,007\nb/2.jpg,p\n"
SEMICOLON, TAB = TEXT.replace(",", ";"), TEXT.replace(",", "\t")


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("cp1252"),
        SEMICOLON.encode("cp1252"),
        SEMICOLON.replace("\n", "\r\n").encode(),
        ("sep=;\r\n" + SEMICOLON).encode("cp1252"),
        TAB.encode("utf-16"),
        TEXT.replace("path,patient", " Path ,Group,").encode(),
        (TEXT + ",\n,,\n\n").encode(),
    ],
)
def test_dialects_give_the_same_rows(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    rows = read_table(tmp_path / "t.csv", "path", "patient")
    first = 3 if content.startswith(b"sep") else 2
    assert [line for line, _ in rows] == [first, first + 1]
    values = [(row["path"], row["patient"]) for _, row in rows]
    assert values == [("a/ä 1.jpg", "007"), ("b/2.jpg", "p")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,class\n", "expected the columns path, label, got path, class"),
        (b"", "expected the columns path, label, got none"),
        (b"path,label\na.jpg,x,y,z\n", "line 2: expected 2 fields, got more"),
        (b"path,label,patient,group\n", "expected one column patient, got several"),
        (b"PK\x03\x04", 'got a workbook of Excel: save the table as "CSV UTF-8"'),
        (b"path,label\n\0", 'got bytes that are no text: save the table as "CSV UTF-8"'),
        (b"\xff\xfep", "got bytes that are no text"),
    ],
)
def test_other_files_are_refused_with_the_remedy(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_table(tmp_path / "t.csv", "path", "label")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a/1.jpg", "a/1.jpg"),
        ("a\\1.JPG", "a/1.jpg"),
        ("b/é.jpg", "b/é.jpg"),
        ("b/e\u0301.jpg", "b/é.jpg"),
        ("C/x.jpg", None),
        ("1.jpg", None),
    ],
)
def test_paths_are_found_where_unambiguous(path, found):
    assert PathLookup(["a/1.jpg", "b/é.jpg", "c/x.jpg", "c/X.jpg"]).find(path) == found


def test_rows_that_contradict_each_other_are_refused(tmp_path):
    table, files = tmp_path / "t.csv", PathLookup(["a/1.jpg"])
    table.write_text("path,patient\na/1.jpg,p\nA\\1.jpg,p\n")
    assert list(match_rows(table, files, "patient")) == ["a/1.jpg"]
    table.write_text("path,patient\na/1.jpg,p\nA\\1.jpg,q\n")
    with pytest.raises(SourceError, match=r"line 3: .* line 2 says .*, patient 'p', got 'q'"):
        match_rows(table, files, "patient")


def test_words_for_unknown_patients_are_no_patients():
    assert {patient_name(text) for text in ("NA", "n/a", "unknown", "-", "nan", "")} == {""}
    assert patient_name("e\u0301") == "é"
