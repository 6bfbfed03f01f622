"""Tables between stages survive the way through a file, and what isn't one is refused by name."""

import json

import pandas as pd
import pytest

from stages.core.files import FileFormatError
from stages.core.tables import DESCRIPTOR, Table, read_table, table_names, write_tables

TEXT, NUMBERS = ["1", "NA", 'ä, "2"\n'], [0.0, -1.23456789, 1e-9]
TABLE = Table("t", {"path": (str, "image"), "eps": (float, "budget")}, probabilities=True)
ROWS = pd.DataFrame({"path": TEXT, "eps": NUMBERS, "p_1": 0.1, "p_NA": 0.9})


def test_text_stays_text_and_numbers_keep_six_digits(tmp_path):
    empty = Table("empty", {"count": (int, "of nothing")})
    write_tables(tmp_path, [(TABLE, ROWS), (empty, pd.DataFrame(columns=["count"]))])
    assert table_names(tmp_path) == ["t", "empty"]
    assert read_table(tmp_path, "empty").empty
    read = read_table(tmp_path, "t")
    pd.testing.assert_frame_equal(read, ROWS, rtol=1e-5, atol=0)
    before = (tmp_path / "t.csv").read_bytes()
    write_tables(tmp_path, [(TABLE, read)])
    assert (tmp_path / "t.csv").read_bytes() == before
    assert table_names(tmp_path) == ["t"]


@pytest.mark.parametrize(
    "rows", [ROWS.drop(columns="eps"), ROWS.assign(more=1), ROWS.iloc[:, ::-1]]
)
def test_rows_with_other_columns_are_not_written(rows, tmp_path):
    with pytest.raises(FileFormatError, match="t: expected the columns path, eps"):
        write_tables(tmp_path, [(TABLE, rows)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / DESCRIPTOR).unlink(), f"{DESCRIPTOR}: expected a file written"),
        (lambda folder: (folder / DESCRIPTOR).write_text("{}"), f"{DESCRIPTOR}: expected JSON"),
        (
            lambda folder: (folder / DESCRIPTOR).write_text(json.dumps({"resources": []})),
            f"{DESCRIPTOR}: expected the table t, got none",
        ),
        (lambda folder: (folder / "t.csv").unlink(), r"t\.csv: expected a file written"),
        (lambda folder: (folder / "t.csv").write_text(""), r"t\.csv: expected a table written"),
        (lambda folder: (folder / "t.csv").write_text("a\n1\n"), r"t\.csv: expected the columns"),
    ],
)
def test_missing_or_damaged_files_are_named(damage, message, tmp_path):
    write_tables(tmp_path, [(TABLE, ROWS)])
    damage(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        read_table(tmp_path, "t")
