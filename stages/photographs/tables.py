"""The CSV tables that speak about images: found where DVC watches them, and read with checks."""

import csv
from pathlib import Path, PurePosixPath

from stages.core.errors import InputError
from stages.core.params import DataParams

LABEL_FIXES = "data/label_fixes.csv"  # the project's own corrections, a dependency in dvc.yaml


class SourceError(InputError):
    """The source, or a table that speaks about it, can't be used; the message names the place."""


def find_table(data: DataParams, key: str) -> Path | None:
    """The table that `data.<key>` names, in the source or LABEL_FIXES; None for none.

    Raises:
        SourceError: when it isn't there. DVC would not notice a change of any other file.
    """
    source, name = Path(data.source), getattr(data, key)
    if name == "none":
        return None
    if key == "label_fixes" and name == LABEL_FIXES:
        return Path(name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not (source / path).exists():
        or_fixes = f", {LABEL_FIXES}" if key == "label_fixes" else ""
        expected = f"expected a CSV file in the source folder {source}{or_fixes} or none"
        raise SourceError(f"data.{key}: {expected}, got {name}")
    return source / path


def read_table(file: Path, *required: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with their line numbers.

    Raises:
        SourceError: when it lacks one of the required columns or isn't a CSV file.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            columns = reader.fieldnames or ()
            if not set(required) <= set(columns):
                got = ", ".join(columns) or "none"
                raise SourceError(f"{file}: expected the columns {', '.join(required)}, got {got}")
            rows = []
            for row in reader:
                if None in row:  # where DictReader puts fields without a column
                    raise SourceError(
                        f"{file}: line {reader.line_num}: expected {len(columns)} fields, got more"
                    )
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file}: expected a CSV table, got an error: {error}") from None


def read_values(file: Path | None, column: str) -> dict[str, str]:
    """Values of a column by path; none without a file."""
    if file is None:
        return {}
    rows = read_table(file, "path", column)
    return {checked_path(row["path"], file, line): row[column].strip() for line, row in rows}


def checked_path(text: str, table: Path, line: int) -> str:
    """A path relative to the source, as posix.

    Raises:
        SourceError: when it leads elsewhere.
    """
    path = PurePosixPath(text.strip())
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in text:
        raise SourceError(f"{table}: line {line}: expected a path below the source, got {text!r}")
    return path.as_posix()
