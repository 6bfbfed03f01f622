"""Which images there are, what their labels, patients and splits are, and which files are none.

The source is walked, or read from a table; no image is opened here. Every file ends up in exactly
one of `ImageIndex.images`, `rejected`, `bystanders`, or the count `official_test`.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from stages.core.dataset import SPLITS
from stages.core.params import DataParams
from stages.photographs.layout import (
    TEST_FOLDER,
    UNLABELED_FOLDER,
    check_layout,
    class_of,
    split_of,
    unlabeled_test_folders,
)
from stages.photographs.source_files import (
    CONTROL,
    SourceFiles,
    escape,
    find_files,
    unusable,
)
from stages.photographs.tables import (
    LABEL_FIXES,
    PathLookup,
    Row,
    SourceError,
    check_any_matched,
    find_table,
    match_rows,
    normal_form,
    patient_name,
    read_table,
    unmatched,
)

IN_USE = "in use"  # kind of the bystanders that are read: tables and the marker
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in a source of synthetic images: every report says so
SOLUTION = "solution_stg1_release.csv"  # image_name, and a column of 0 or 1 for each class


@dataclass(frozen=True)
class ImageRecord:
    """One file that should be an image.

    Attributes:
        path: relative to the source, posix.
        file: where it is.
        label: its class.
        patient: "" when unknown.
        split: "" when not given.
    """

    path: str
    file: Path
    label: str
    patient: str = ""
    split: str = ""


@dataclass
class ImageIndex:
    """The listed files.

    Attributes:
        images: sorted by path.
        rejected: path -> "kind: detail".
        bystanders: kind -> paths, of files that are left out for what they are.
        synthetic: whether the source says that its images are synthetic.
        official_test: number of images in the competition's test folder.
        label_fixes: number of applied label corrections, and of those without an image.
        excluded: the same of exclusions.
        warnings: what the user should know, with the remedy.
    """

    images: list[ImageRecord]
    rejected: dict[str, str]
    bystanders: dict[str, list[str]]
    synthetic: bool = False
    official_test: int = 0
    label_fixes: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})
    excluded: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})
    warnings: list[str] = field(default_factory=list)


def list_images(data: DataParams) -> ImageIndex:
    """The images of `data.source` with label corrections, exclusions and patients applied.

    Raises:
        SourceError: when the source is missing, holds no images or one class only, its folders
            don't tell the classes, or a table is malformed or was written for other images.
    """
    source = Path(data.source)
    if not source.is_dir():
        got = "a file" if source.exists() else "nothing there"
        raise SourceError(f"data.source: {source}: expected a folder of images, got {got}")
    tables = {key: find_table(data, key) for key in ("table", "exclude", "label_fixes", "groups")}
    if tables["table"] and data.test != "split":
        raise SourceError(
            "data.test: expected split with a table (its column split may name the test), "
            f"got {data.test}"
        )
    files = find_files(source)
    lookup = PathLookup(files.paths())
    if tables["table"]:
        index = _from_table(source, tables["table"], files, lookup)
    else:
        index = _from_folders(source, files, data)
    index.synthetic = (source / SYNTHETIC_MARKER).exists()
    _exclude(index, tables["exclude"], lookup)
    _correct_labels(index, tables["label_fixes"], lookup)
    _assign_patients(index, tables["groups"], lookup, data.group_pattern)
    _sort_documents(index, source, [table for table in tables.values() if table])
    index.images.sort(key=lambda record: record.path)
    _check_names(index)
    _check_classes(index, source)
    return index


def _check_names(index: ImageIndex) -> None:
    for record in index.images:
        if CONTROL.search(record.label + record.patient):
            raise SourceError(
                f"data.source: {record.path}: expected a class and a patient without control "
                f"characters, got {record.label!r}, {record.patient!r}"
            )


def _check_classes(index: ImageIndex, source: Path) -> None:
    classes = sorted({record.label for record in index.images})
    if len(classes) >= 2:
        alike = {name.casefold().strip(): name for name in classes}
        for name in classes:
            if (other := alike[name.casefold().strip()]) != name:
                index.warnings.append(
                    f"classes {name!r} and {other!r} are two: give their folders one name if they "
                    "are one"
                )
        return
    count = f"1 class ({classes[0]})" if classes else "0 classes"
    got = f"{len(index.images)} images of {count}"
    if index.rejected:  # links to the class folders, for example
        path, reason = min(index.rejected.items())
        got += f", and {len(index.rejected)} that can't be used, the first is {path} ({reason})"
    raise SourceError(f"data.source: {source}: expected images of at least two classes, got {got}")


def _from_folders(source: Path, files: SourceFiles, data: DataParams) -> ImageIndex:
    """Labels by folder or by `data.class_pattern`."""
    index = ImageIndex([], files.rejected, files.bystanders)
    pattern = _compile(data.class_pattern, "class_pattern", "the class")
    holders = {PurePosixPath(path).parent for path in files.pictures}
    test_folders = set() if pattern else unlabeled_test_folders(holders)
    folders: dict[PurePosixPath, str] = {}
    tests: list[ImageRecord] = []
    for name, file in files.pictures.items():
        path = PurePosixPath(name)
        label = class_of(path, pattern)
        if path.parent in test_folders:
            tests.append(ImageRecord(name, file, label="", split="test"))
        elif path.parent.name == UNLABELED_FOLDER and not pattern:
            index.bystanders.setdefault("unlabeled", []).append(name)
        elif not label:
            where = (
                "doesn't match data.class_pattern" if pattern else "lies outside the class folders"
            )
            index.rejected[name] = f"no class: {where}"
        else:
            split = split_of(path) if data.test == "folders" else ""
            index.images.append(ImageRecord(name, file, label, split=split))
            folders[path.parent] = label
    if not pattern:
        check_layout(folders, files, source)
    index.official_test = len(tests)
    if data.test == "official":
        _add_official_test(index, source, tests)
    _check_splits(index, data)
    return index


def _check_splits(index: ImageIndex, data: DataParams) -> None:
    """A split that somebody made must not be lost unnoticed."""
    found = {split_of(PurePosixPath(record.path)) for record in index.images} - {""}
    if data.test == "folders" and "test" not in found:
        got = ", ".join(sorted(found)) or "none"
        raise SourceError(
            "data.test: folders: expected folders train, test and perhaps val above those of the "
            f"classes, got {got}"
        )
    if data.test == "split" and found - {"train"}:
        index.warnings.append(
            f"the folders {', '.join(sorted(found))} look like a split, which is not kept: a new "
            "one is drawn (data.test: folders keeps it)"
        )


def _add_official_test(index: ImageIndex, source: Path, tests: list[ImageRecord]) -> None:
    documents = index.bystanders.get("documents", [])
    solutions = [path for path in documents if PurePosixPath(path).name == SOLUTION]
    if not tests or len(solutions) != 1:
        raise SourceError(
            f"data.test: official: expected images in test/test and one {SOLUTION} below {source}, "
            f"got {len(tests)} images and {len(solutions)} such files"
        )
    labels = _read_solution(source / solutions[0])
    for record in tests:
        label = labels.pop(record.file.name, None)
        if label is None:
            index.rejected[record.path] = f"no class: not in {SOLUTION}"
        else:
            index.images.append(replace(record, label=label))
    for name in labels:
        index.rejected[f"{TEST_FOLDER}/{name}"] = f"missing: named in {SOLUTION}"


def _read_solution(file: Path) -> dict[str, str]:
    """File name -> class."""
    labels: dict[str, str] = {}
    for line, row in read_table(file, "image_name"):
        image = row.pop("image_name")
        chosen = [label for label, value in row.items() if value in ("1", "1.0")]
        if len(chosen) != 1:
            got = f"expected 1 for exactly one class, got {len(chosen)}"
            raise SourceError(f"{file}: line {line}: {got}")
        if labels.setdefault(image, chosen[0]) != chosen[0]:
            raise SourceError(f"{file}: line {line}: expected one class of {image}, got another")
    return labels


def _from_table(source: Path, table: Path, files: SourceFiles, lookup: PathLookup) -> ImageIndex:
    """A CSV with the columns path, label and perhaps patient and split."""
    root, index = source.resolve(), ImageIndex([], {}, {})
    rows = match_rows(table, lookup, "label")
    check_any_matched("table", table, list(rows.values()), lookup)
    for path, row in rows.items():
        label, split = normal_form(row.values["label"]), row.values["split"]
        if not label or split not in ("", *SPLITS):
            raise SourceError(
                f"{table}: line {row.line}: expected a label and a split out of "
                f"{', '.join(SPLITS)} or none, got {label!r}, {split!r}"
            )
        if reason := unusable(source / path, root):
            index.rejected[escape(path)] = reason
        else:
            patient = patient_name(row.values["patient"])
            index.images.append(ImageRecord(path, source / path, label, patient, split))
    unnamed = [path for path in files.pictures if path not in rows]
    others = {"not in the table": unnamed} if unnamed else {}
    index.bystanders = files.bystanders | others
    index.rejected = {
        path: reason for path, reason in files.rejected.items() if path not in rows
    } | index.rejected
    return index


def _exclude(index: ImageIndex, table: Path | None, lookup: PathLookup) -> None:
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


def _correct_labels(index: ImageIndex, table: Path | None, lookup: PathLookup) -> None:
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


def _assign_patients(
    index: ImageIndex, table: Path | None, lookup: PathLookup, pattern: str
) -> None:
    """From the image table, or else the table of patients, or else the pattern."""
    rows = _rows_for(index, "groups", table, lookup, "patient") if table else {}
    named = {path: patient_name(row.values["patient"]) for path, row in rows.items()}
    expression = _compile(pattern, "group_pattern", "the patient")
    for number, record in enumerate(index.images):
        match = expression.search(record.path) if expression else None
        found = (match and match[1]) or ""
        patient = record.patient or named.get(record.path) or patient_name(found)
        index.images[number] = replace(record, patient=patient)
    # A table or pattern made for other images would silently leave every patient unknown.
    paths = [record.path for record in index.images]
    if paths and table and not any(named.get(path) for path in paths):
        expected = "expected patients of the source's images"
        raise SourceError(f"data.groups: {table}: {expected}, got none for {len(paths)} images")
    if paths and expression and not any(map(expression.search, paths)):
        expected = "expected a match in the images' paths"
        raise SourceError(f"data.group_pattern: {expected}, got none in {len(paths)}: {pattern!r}")


def _compile(pattern: str, key: str, what: str) -> re.Pattern[str] | None:
    """None for none."""
    if pattern == "none":
        return None
    expected = f"data.{key}: expected a regular expression with one (group), {what}"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SourceError(f"{expected}, got {pattern!r}: {error}") from None
    if expression.groups < 1:
        raise SourceError(f"{expected}, got {pattern!r}")
    return expression


def _sort_documents(index: ImageIndex, source: Path, used: list[Path]) -> None:
    """Tell those in use from others; warn of tables of paths that no parameter names."""
    documents, index.bystanders["documents"] = index.bystanders.get("documents", []), []
    for path in documents:
        file = source / path
        in_use = file in used or file.name in (SYNTHETIC_MARKER, SOLUTION)
        index.bystanders.setdefault(IN_USE if in_use else "documents", []).append(path)
        if not in_use and file.parent == source and _is_table_of_paths(file):
            index.warnings.append(
                f"{path} has a column path, but isn't read: data.table, data.groups, data.exclude "
                "or data.label_fixes may name it"
            )
    index.bystanders = {kind: paths for kind, paths in index.bystanders.items() if paths}


def _is_table_of_paths(file: Path) -> bool:
    try:
        return file.suffix.lower() == ".csv" and bool(read_table(file, "path"))
    except SourceError:
        return False
