"""Files between stages: written whole or not at all, and refused by name when they are damaged."""

import errno

import pandas as pd
import pytest

from stages.core.files import (
    FileFormatError,
    open_atomic,
    read_csv,
    read_json,
    write_bytes,
    write_csv,
)
from tests.helpers.full_disk import file_size_limit

TABLE = pd.DataFrame({"path": ["1", "NA", 'a,"b\n'], "eps": [0.0, 0.1, 1e-9]})


def test_full_disk_names_the_file_and_keeps_the_previous_one(tmp_path):
    file = tmp_path / "table.csv"
    write_bytes(file, b"before")
    with file_size_limit(1000), pytest.raises(OSError, match=r"table\.csv") as caught:
        write_csv(file, pd.DataFrame({"a": range(1000)}))
    assert caught.value.errno == errno.EFBIG
    assert file.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_failed_writer_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_atomic(tmp_path / "a" / "b") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert not list((tmp_path / "a").iterdir())


def test_table_round_trips_with_text_as_text(tmp_path):
    write_csv(tmp_path / "t.csv", TABLE)
    pd.testing.assert_frame_equal(
        read_csv(tmp_path / "t.csv", "stage", ("path",)), TABLE, check_dtype=False
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No columns"),
        (b"path,eps\n\xff,1\n", "can't decode byte 0xff"),
        (b"path,eps\na,1,2\n", "more fields than columns"),
        (b"path,eps\na,1\nb,1,2\n", "Expected 2 fields in line 3, saw 3"),
        (b"path,eps\na\n", "eps"),
        (b"path,eps\na,1e\n", "1e"),
        (b"path,eps\na,nan\n", "Unable to parse string 'nan'"),
        (b"path,eps\na,inf\n", "eps: a number that is not finite"),
        (b"path,eps\na,\0\n", "a NUL character"),
        (b'path,eps\n"a,1\n', "EOF inside string"),
    ],
)
def test_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(
        FileFormatError,
        match=rf"t\.csv: expected a table written by train, got an error: .*{message}",
    ):
        read_csv(tmp_path / "t.csv", "train", ("path",))


@pytest.mark.parametrize(
    "content", [b"", b"[", b"null", b"{}", b"[1]", b'[{"value": "D1"}]', b"\xff", b"[" * 10**5]
)
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(
        FileFormatError, match=r"c\.json: expected JSON written by attack_eval, got"
    ):
        read_json(tmp_path / "c.json", "attack_eval", list[dict[str, float]])


def test_missing_file_names_the_stage_to_run(tmp_path):
    for read, kind in ((read_csv, ()), (read_json, list)):
        with pytest.raises(
            FileFormatError,
            match="x: expected a file written by evaluate, got none: run that stage first",
        ):
            read(tmp_path / "x", "evaluate", kind)
