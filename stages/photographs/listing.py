"""Which images there are, what their labels are, and which files are none: the source, walked or read from a table.

Nothing here opens an image. Every file under the source, or every one that the table names, ends up in exactly one of
`ImageIndex.images`, `ImageIndex.rejected` or the count `ImageIndex.other_files`; the official test, if not used,
in the count `ImageIndex.official_test`.
"""

import csv
import errno
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from stages.core.dataset import SPLITS
from stages.core.errors import InputError
from stages.core.params import DataParams

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".heic",
)  # an image by its name
SYSTEM_FILES = (
    "thumbs.db",
    "desktop.ini",
)  # left behind by file managers, like all names that begin with a dot
TEST_FOLDER = "test"  # the competition's test images lie in test/test, without a class folder: no class can have this name
UNLABELLED_FOLDER = (
    "test_stg2"  # those of its second stage, whose labels were never published: no class either
)
LABEL_FIXES = "data/label_fixes.csv"  # the project's own corrections, a dependency in dvc.yaml
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in a source of synthetic images: every report on them says so
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f]"
)  # characters that end lines of tables and logs, or steer a terminal
SOLUTION = "solution_stg1_release.csv"  # image_name and one column of 0 or 1 for each class


class SourceError(InputError):
    """The source, or a table that speaks about it, can't be used; the message names file and row."""


@dataclass(frozen=True)
class ImageRecord:
    """One file that should be an image. path: relative to the source, posix; patient and split: "" when not given."""

    path: str
    file: Path
    label: str
    patient: str = ""
    split: str = ""


@dataclass
class ImageIndex:
    """images: sorted by path; rejected: path -> "kind: detail"; the rest are counts for the metrics."""

    images: list[ImageRecord]
    rejected: dict[str, str]
    synthetic: bool = False
    other_files: int = 0
    official_test: int = 0
    label_fixes: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})
    excluded: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})


def list_images(data: DataParams) -> ImageIndex:
    """The images of `data.source` with their labels, label corrections, exclusions and patients applied.

    Raises:
        SourceError: when the source is missing, holds no images or one class only, or a table is malformed.
    """
    source = Path(data.source)
    if not source.is_dir():
        got = "a file" if source.exists() else "nothing there"
        raise SourceError(f"data.source: {source}: expected a folder of images, got {got}")
    table, exclude, groups, label_fixes = (
        _find_table(source, data, key) for key in ("table", "exclude", "groups", "label_fixes")
    )
    if table and data.test == "official":
        raise SourceError(
            f"data.test: expected split with a table (its column split may name the test), got {data.test}"
        )
    listing = (
        _from_table(source, table)
        if table
        else _from_folders(source, official=data.test == "official")
    )
    listing.synthetic = (source / SYNTHETIC_MARKER).exists()
    _exclude(listing, exclude)
    _apply_label_corrections(listing, label_fixes)
    _assign_patients(listing, groups, data.group_pattern)
    listing.images.sort(key=lambda record: record.path)
    for record in listing.images:
        if CONTROL.search(record.label + record.patient):
            got = f"{record.label!r}, {record.patient!r}"
            raise SourceError(
                f"data.source: {record.path}: expected a class and a patient without control characters, got {got}"
            )
    classes = {record.label for record in listing.images}
    if len(classes) < 2:
        found = f"{len(listing.images)} images of {len(classes)} class" + (
            f" ({classes.pop()})" if classes else "es"
        )
        if listing.rejected:  # links to the class folders, for example
            path, reason = min(listing.rejected.items())
            found += (
                f", and {len(listing.rejected)} that can't be used, the first is {path} ({reason})"
            )
        raise SourceError(
            f"data.source: {source}: expected images of at least two classes, got {found}"
        )
    return listing


def _find_table(source: Path, data: DataParams, key: str) -> Path | None:
    """The table that `data.<key>` names; None for none.

    It lies where DVC watches it: in the source, or for label_fixes also at LABEL_FIXES.
    """
    name = getattr(data, key)
    if name == "none":
        return None
    if key == "label_fixes" and name == LABEL_FIXES:
        return Path(name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not (source / name).exists():
        or_fixes = f", {LABEL_FIXES}" if key == "label_fixes" else ""
        raise SourceError(
            f"data.{key}: expected a CSV file in the source folder {source}{or_fixes} or none, "
            f"got {name}"
        )
    return source / name


def _from_folders(source: Path, official: bool) -> ImageIndex:
    """The label of an image is the name of the folder that holds it, at any depth."""
    root, index, solutions = source.resolve(), ImageIndex([], {}), []
    tests: list[ImageRecord] = []

    def unreadable(error: OSError) -> None:
        index.rejected[_relative(Path(error.filename), source)] = f"unreadable: {error.strerror}"

    for folder, subfolders, names in os.walk(source, onerror=unreadable):
        subfolders.sort()
        here = Path(folder)
        for name in subfolders:
            if (
                here / name
            ).is_symlink():  # os.walk doesn't follow it: it may lead outside or in a circle
                index.rejected[_relative(here / name, source)] = "link: to a folder"
        has_images = any(Path(name).suffix.lower() in SUFFIXES for name in names)
        for name in sorted(names):
            file, path = here / name, _relative(here / name, source)
            if name == SOLUTION:
                solutions.append(file)
            if not has_images or _is_ignored(file, source):
                index.other_files += 1
            elif reason := _rejection_by_place(file, source) or _rejection_reason(file, root):
                index.rejected[path] = reason
            elif here.name == TEST_FOLDER:
                tests.append(ImageRecord(path, file, label="", split="test"))
            else:
                index.images.append(ImageRecord(path, file, here.name))
    index.official_test = len(tests)
    if official:
        _add_official_test(index, source, tests, solutions)
    return index


def _is_ignored(file: Path, source: Path) -> bool:
    """Files that belong to the system, to tables in the image root, or to images without published labels."""
    system = file.name.startswith(".") or file.name.lower() in SYSTEM_FILES
    table = file.parent == source and file.suffix.lower() not in SUFFIXES
    return system or table or file.parent.name == UNLABELLED_FOLDER


def _rejection_by_place(file: Path, source: Path) -> str:
    """Why a file is no labeled image by its name or folder, or ""."""
    if file.suffix.lower() not in SUFFIXES:
        return f"not an image: by its name, {file.suffix or 'no suffix'}"
    return "no class: lies outside the class folders" if file.parent == source else ""


def _relative(file: Path, source: Path) -> str:
    r"""Posix path below the source. Bytes that are no UTF-8 are shown as \\x.. so that every table can hold the name."""
    path = (
        file.relative_to(source)
        .as_posix()
        .encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
    )
    return _escape(path)


def _escape(path: str) -> str:
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", path)


def _rejection_reason(file: Path, root: Path) -> str:
    """Why a file must not be opened, or ""."""
    try:
        os.fsdecode(file).encode("utf-8")
    except UnicodeEncodeError:
        return "name: not UTF-8"
    if CONTROL.search(str(file)):
        return "name: has control characters"
    try:
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(file.stat().st_mode):
            return "not a file: a device, pipe, socket or folder"
        # A table may name files in linked folders, too.
        return "" if file.resolve().is_relative_to(root) else "link: leaves the source"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return "link: broken" if os.path.islink(file) else "missing: no such file"
        return f"unreadable: {error.strerror}"


def _add_official_test(
    listing: ImageIndex, source: Path, tests: list[ImageRecord], solutions: list[Path]
) -> None:
    if not tests or len(solutions) != 1:
        raise SourceError(
            f"data.test: official: expected images in test/test and one {SOLUTION} below {source}, "
            f"got {len(tests)} images and {len(solutions)} such files"
        )
    labels, file = {}, solutions[0]
    for number, row in _read_table(file, "image_name"):
        chosen = [
            name
            for name, value in row.items()
            if name != "image_name" and value.strip() in ("1", "1.0")
        ]
        if len(chosen) != 1:
            raise SourceError(
                f"{file}: line {number}: expected 1 for exactly one class, got {len(chosen)}"
            )
        labels[row["image_name"]] = chosen[0]
    for record in tests:
        label = labels.pop(record.file.name, None)
        if label is None:
            listing.rejected[record.path] = f"no class: not in {SOLUTION}"
        else:
            listing.images.append(replace(record, label=label))
    for name in labels:
        listing.rejected[f"{TEST_FOLDER}/{name}"] = f"missing: named in {SOLUTION}"


def _from_table(source: Path, table: Path) -> ImageIndex:
    """A CSV with the columns path, label and perhaps group and split; paths are relative to the source."""
    root, listing = source.resolve(), ImageIndex([], {})
    seen = set()
    for number, row in _read_table(table, "path", "label"):
        path = _checked_path(row["path"], table, number)
        split = row.get("split", "").strip()
        if path in seen or not row["label"].strip() or split not in ("", *SPLITS):
            raise SourceError(
                f"{table}: line {number}: expected a new path, a label and a split out of {', '.join(SPLITS)} or none, "
                f"got {path!r}, {row['label']!r}, {split!r}"
            )
        seen.add(path)
        file = source / path
        if reason := _rejection_reason(file, root):
            listing.rejected[_escape(path)] = reason
        else:
            listing.images.append(
                ImageRecord(path, file, row["label"].strip(), row.get("group", "").strip(), split)
            )
    return listing


def _exclude(listing: ImageIndex, table: Path | None) -> None:
    if not table:
        return
    unwanted = {
        _checked_path(row["path"], table, number) for number, row in _read_table(table, "path")
    }
    kept = [record for record in listing.images if record.path not in unwanted]
    applied = len(listing.images) - len(kept)
    listing.excluded = {"applied": applied, "not_found": len(unwanted) - applied}
    listing.rejected |= {
        record.path: f"excluded: by {table.name}"
        for record in listing.images
        if record.path in unwanted
    }
    listing.images = kept


def _apply_label_corrections(listing: ImageIndex, table: Path | None) -> None:
    if not table:
        return
    fixes = {}
    for number, row in _read_table(table, "path", "label"):
        fixes[_checked_path(row["path"], table, number)] = row["label"].strip()
    classes = {record.label for record in listing.images}
    for index, record in enumerate(listing.images):
        label = fixes.get(record.path)
        if label is None:
            continue
        if label not in classes:
            raise SourceError(
                f"{table}: {record.path}: expected a class out of {', '.join(sorted(classes))}, got {label!r}"
            )
        listing.images[index] = replace(record, label=label)
        listing.label_fixes["applied"] += 1
    listing.label_fixes["not_found"] = len(fixes) - listing.label_fixes["applied"]


def _assign_patients(listing: ImageIndex, table: Path | None, pattern: str) -> None:
    """A table path,patient comes first; the pattern speaks where the table is silent."""
    patients = {}
    if table:
        for number, row in _read_table(table, "path", "patient"):
            patients[_checked_path(row["path"], table, number)] = row["patient"].strip()
    try:
        expression = None if pattern == "none" else re.compile(pattern)
    except re.error as error:
        raise SourceError(
            f"data.group_pattern: expected a regular expression, got {pattern!r}: {error}"
        ) from None
    if expression and expression.groups < 1:
        raise SourceError(
            f"data.group_pattern: expected one (group) that names the patient, got {pattern!r}"
        )
    in_table = in_pattern = 0
    for index, record in enumerate(listing.images):
        match = expression.search(record.path) if expression else None
        in_table += record.path in patients
        in_pattern += match is not None
        patient = record.patient or patients.get(record.path) or (match and match[1]) or ""
        listing.images[index] = replace(record, patient=patient)
    # A table or pattern made for other images would silently leave every patient unknown.
    count = len(listing.images)
    if count and table and not in_table:
        raise SourceError(
            f"data.groups: {table}: expected paths of the source's images, got none of {count}"
        )
    if count and expression and not in_pattern:
        raise SourceError(
            f"data.group_pattern: expected a match in the images' paths, got none in {count}: {pattern!r}"
        )


def _read_table(file: Path, *required: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with their line numbers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            columns = reader.fieldnames or ()
            missing = [name for name in required if name not in columns]
            if missing:
                raise SourceError(
                    f"{file}: expected the columns {', '.join(required)}, got {', '.join(columns) or 'none'}"
                )
            rows = []
            for row in reader:
                if None in row:  # where DictReader puts what has no column
                    raise SourceError(
                        f"{file}: line {reader.line_num}: expected {len(columns)} fields, got more"
                    )
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file}: expected a CSV table, got an error: {error}") from None


def _checked_path(text: str, table: Path, number: int) -> str:
    path = PurePosixPath(text.strip())
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in text:
        raise SourceError(f"{table}: line {number}: expected a path below the source, got {text!r}")
    return path.as_posix()
