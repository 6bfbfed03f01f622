"""What the user's tables say of listed images: exclusions, label corrections and patients."""

from dataclasses import replace
from pathlib import Path

from stages.photographs.image_index import ImageIndex
from stages.photographs.layout import compile_pattern
from stages.photographs.tables import (
    COLUMNS,
    LABEL_FIXES,
    UNKNOWN,
    PathLookup,
    Row,
    SourceError,
    check_any_matched,
    match_rows,
    normal_form,
    patient_name,
    unmatched,
)


def exclude(index: ImageIndex, table: Path | None, lookup: PathLookup) -> None:
    """Reject the images that the table names (None: none).

    Raises:
        SourceError: when the table is malformed or names no file of the source.
    """
    if not table:
        return
    rows = _rows_for(index, "exclude", table, lookup)
    listed, index.images = index.images, []
    for record in listed:
        if record.path in rows:
            index.rejected[record.path] = f"excluded: by {table.name}"
        else:
            index.images.append(record)
    applied = len(listed) - len(index.images)
    index.excluded = {"applied": applied, "not_found": len(rows) - applied}


def _rows_for(
    index: ImageIndex, key: str, table: Path, lookup: PathLookup, *columns: str
) -> dict[str, Row]:
    """The rows of a table by path; those without a file are warned of.

    The project's own corrections are none of the user's: they are for one dataset.
    """
    rows = match_rows(table, lookup, *columns)
    if table != Path(LABEL_FIXES):
        check_any_matched(key, table, list(rows.values()), lookup)
        if lost := unmatched(table, rows.values()):
            index.warnings.append(f"{lost}: paths are relative to data.source")
    return rows


def correct_labels(index: ImageIndex, table: Path | None, lookup: PathLookup) -> None:
    """Give the images that the table names its labels (None: none).

    Raises:
        SourceError: when a label is no class of the images, the table is malformed, or it names no
            file of the source.
    """
    if not table:
        return
    rows = _rows_for(index, "label_fixes", table, lookup, "label")
    classes = {record.label for record in index.images}
    applied = 0
    for number, record in enumerate(index.images):
        if record.path not in rows:
            continue
        row = rows[record.path]
        label = normal_form(row.values["label"])
        if label not in classes:
            expected = f"expected a class out of {', '.join(sorted(classes))}"
            raise SourceError(f"{table}: line {row.line}: {record.path}: {expected}, got {label!r}")
        index.images[number] = replace(record, label=label)
        applied += 1
    index.label_fixes = {"applied": applied, "not_found": len(rows) - applied}


def assign_patients(
    index: ImageIndex, table: Path | None, lookup: PathLookup, pattern: str
) -> None:
    """From the image table, or else the table of patients, or else the pattern.

    The further columns of the table of patients, such as a device or a site, make subgroups.

    Raises:
        SourceError: when the table is malformed, or no image gets a patient by the table or matches
            the pattern.
    """
    rows = _rows_for(index, "groups", table, lookup, "patient") if table else {}
    named = {path: patient_name(row.values["patient"]) for path, row in rows.items()}
    expression = compile_pattern(pattern, "group_pattern", "the patient")
    for number, record in enumerate(index.images):
        match = expression.search(record.path) if expression else None
        found = (match and match[1]) or ""
        patient = record.patient or named.get(record.path) or patient_name(found)
        subgroups = _subgroups(rows[record.path]) if record.path in rows else {}
        index.images[number] = replace(record, patient=patient, subgroups=subgroups)
    # A table or pattern made for other images would silently leave every patient unknown.
    paths = [record.path for record in index.images]
    if paths and table and not any(named.get(path) for path in paths):
        expected = "expected patients of the source's images"
        raise SourceError(f"data.groups: {table}: {expected}, got none for {len(paths)} images")
    if paths and expression and not any(map(expression.search, paths)):
        expected = "expected a match in the images' paths"
        raise SourceError(f"data.group_pattern: {expected}, got none in {len(paths)}: {pattern!r}")


def _subgroups(row: Row) -> dict[str, str]:
    """Column -> value of what a table of patients says besides path, label, patient and split."""
    found = {}
    for column, value in row.values.items():
        if column and column not in COLUMNS and value.casefold() not in UNKNOWN:
            found[normal_form(column)] = normal_form(value)
    return found
