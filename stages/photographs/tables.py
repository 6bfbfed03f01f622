"""The tables that speak about images: found where DVC watches them, and read as people save them.

Excel saves CSV files with semicolons where the comma is the decimal mark, with tabs as "Unicode
text" (UTF-16), in the code page of Windows, with a line ``sep=;`` and with empty rows at the end.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.core.errors import InputError
from stages.core.params import DataParams

LABEL_FIXES = "data/label_fixes.csv"  # the project's own corrections, a dependency in dvc.yaml
DELIMITERS = ",;\t|"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .xls begin
REMEDY = 'save the table as "CSV UTF-8"'
# What a column may be called, in any case.
COLUMNS = {name: name for name in ("path", "label", "patient", "split")} | {"group": "patient"}
UNKNOWN = ("", "na", "n/a", "nan", "none", "null", "unknown", "-", "--", "?")  # no patients


class SourceError(InputError):
    """The source, or a table that speaks about it, can't be used; the message names the place."""


@dataclass(frozen=True)
class Row:
    """What a table says about one file.

    Attributes:
        line: of the table.
        path: as it stands there.
        values: column -> text; of the columns in COLUMNS, "" for those that the table lacks.
        known: whether such a file exists.
    """

    line: int
    path: str
    values: dict[str, str]
    known: bool


class PathLookup:
    """Finds files by paths in which case, slashes or Unicode's normal form may differ."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        self._alike: dict[str, list[str]] = {}
        for path in self.paths:
            self._alike.setdefault(_fold(path), []).append(path)

    def find(self, path: str) -> str | None:
        """The file with this path, or the only one with a similar path."""
        if path in self.paths:
            return path
        alike = self._alike.get(_fold(path), [])
        return alike[0] if len(alike) == 1 else None


def _fold(path: str) -> str:
    posix = PurePosixPath(path.replace("\\", "/")).as_posix()
    return normal_form(normal_form(posix).casefold())


def normal_form(text: str) -> str:
    """One of the two ways to write letters with accents: macOS and Linux differ."""
    return unicodedata.normalize("NFC", text)


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
    """Rows of a CSV file with their line numbers, without empty ones.

    Columns of COLUMNS are named as there, texts are stripped.

    Raises:
        SourceError: when it lacks one of the required columns or isn't a CSV file.
    """
    text, skipped = _read_text(file), 0
    delimiters = DELIMITERS
    if match := SEPARATOR_LINE.match(text):
        text, skipped, delimiters = text[match.end() :], 1, match[1]
    try:
        for delimiter in delimiters:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            columns = [_column(name) for name in next(reader, [])]
            if set(required) <= set(columns):
                break
        else:
            got = ", ".join(_column(name) for name in text.partition("\n")[0].split(",")) or "none"
            raise SourceError(f"{file}: expected the columns {', '.join(required)}, got {got}")
        twice = [name for name in COLUMNS if columns.count(name) > 1]
        if twice:
            raise SourceError(f"{file}: expected one column {twice[0]}, got several")
        rows = []
        for fields in reader:
            line, fields = reader.line_num + skipped, [field.strip() for field in fields]
            if any(fields[len(columns) :]):
                raise SourceError(f"{file}: line {line}: expected {len(columns)} fields, got more")
            if any(fields):
                padded = fields + [""] * (len(columns) - len(fields))
                rows.append((line, dict(zip(columns, padded, strict=False))))
        return rows
    except csv.Error as error:
        raise SourceError(f"{file}: expected a CSV table, got an error: {error}") from None


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: expected a CSV table, got an error: {error}") from None
    if content.startswith(WORKBOOKS):
        raise SourceError(f"{file}: expected a CSV table, got a workbook of Excel: {REMEDY}")
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise SourceError(f"{file}: expected a CSV table, got bytes that are no text: {REMEDY}")


def _column(name: str) -> str:
    name = name.strip()
    return COLUMNS.get(name.casefold(), name)


def match_rows(file: Path, files: PathLookup, *columns: str) -> dict[str, Row]:
    """The rows of a table by the path of the file that they speak about.

    Args:
        file: the table.
        files: the files that there are.
        columns: that it must have besides path.

    Raises:
        SourceError: when two rows contradict each other, or the table can't be read.
    """
    rows: dict[str, Row] = {}
    known = dict.fromkeys(COLUMNS.values(), "")
    for line, values in read_table(file, "path", *columns):
        text = _checked_path(values["path"], file, line)
        found = files.find(text)
        row = Row(line, text, known | values, found is not None)
        first = rows.setdefault(found or text, row)
        # Subgroups come from the further columns of a table of patients; in others they are notes.
        compared = row.values if "patient" in columns else known
        for name in compared.keys() - {"path"}:
            if first.values[name] != row.values[name]:
                raise SourceError(
                    f"{file}: line {line}: expected what line {first.line} says about "
                    f"{text!r}, {name} {first.values[name]!r}, got {row.values[name]!r}"
                )
    return rows


def unmatched(file: Path, rows: Iterable[Row]) -> str:
    """Which rows match no file, in words; "" for none."""
    lost = [row for row in rows if not row.known]
    if not lost:
        return ""
    count = "1 row" if len(lost) == 1 else f"{len(lost)} rows"
    verb = "matches" if len(lost) == 1 else "match"
    return f"{count} of {file.name} {verb} no image (line {lost[0].line}: {lost[0].path})"


def check_any_matched(key: str, file: Path, rows: Sequence[Row], files: PathLookup) -> None:
    """Raise SourceError when a table was written for other images: it has rows, but none fits."""
    if rows and not any(row.known for row in rows):
        example = min(files.paths, default="none")
        raise SourceError(
            f"data.{key}: {file}: expected paths of the source's images such as {example}, "
            f"got none in {len(rows)} rows: line {rows[0].line} has {rows[0].path}"
        )


def patient_name(text: str) -> str:
    """The patient that a text names, "" for what stands for an unknown one."""
    return "" if text.casefold() in UNKNOWN else normal_form(text)


def _checked_path(text: str, table: Path, line: int) -> str:
    """A path relative to the source, as posix.

    Raises:
        SourceError: when it leads elsewhere.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SourceError(f"{table}: line {line}: expected a path below the source, got {text!r}")
    return path.as_posix()
