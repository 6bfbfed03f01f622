"""Which images there are, what their labels are, and which files are none.

The source is walked, or read from a table; nothing here opens an image. Every file ends up in
exactly one of `ImageIndex.images`, `rejected`, or the counts `other_files` and `official_test`.
"""

import errno
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from stages.core.dataset import SPLITS
from stages.core.params import DataParams
from stages.photographs.tables import (
    SourceError,
    checked_path,
    find_table,
    read_table,
    read_values,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # ignored, like all names that begin with a dot
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in a source of synthetic images: every report says so
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # end lines of tables and logs, steer terminals
# The competition's test images lie in test/test, those of its second stage, whose labels were
# never published, in test_stg2: no class can have these names.
TEST_FOLDER, UNLABELED_FOLDER = "test", "test_stg2"
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
        synthetic: whether the source says that its images are synthetic.
        other_files: number of ignored files.
        official_test: number of images in the competition's test folder.
        label_fixes: number of applied label corrections, and of those without an image.
        excluded: the same of exclusions.
    """

    images: list[ImageRecord]
    rejected: dict[str, str]
    synthetic: bool = False
    other_files: int = 0
    official_test: int = 0
    label_fixes: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})
    excluded: dict[str, int] = field(default_factory=lambda: {"applied": 0, "not_found": 0})


def list_images(data: DataParams) -> ImageIndex:
    """The images of `data.source` with label corrections, exclusions and patients applied.

    Raises:
        SourceError: when the source is missing, holds no images or one class only, or a table is
            malformed.
    """
    source = Path(data.source)
    if not source.is_dir():
        got = "a file" if source.exists() else "nothing there"
        raise SourceError(f"data.source: {source}: expected a folder of images, got {got}")
    table, official = find_table(data, "table"), data.test == "official"
    if table and official:
        raise SourceError(
            "data.test: expected split with a table (its column split may name the test), "
            f"got {data.test}"
        )
    index = _from_table(source, table) if table else _from_folders(source, official=official)
    index.synthetic = (source / SYNTHETIC_MARKER).exists()
    _exclude(index, find_table(data, "exclude"))
    _correct_labels(index, find_table(data, "label_fixes"))
    _assign_patients(index, find_table(data, "groups"), data.group_pattern)
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
        return
    count = f"1 class ({classes[0]})" if classes else "0 classes"
    got = f"{len(index.images)} images of {count}"
    if index.rejected:  # links to the class folders, for example
        path, reason = min(index.rejected.items())
        got += f", and {len(index.rejected)} that can't be used, the first is {path} ({reason})"
    raise SourceError(f"data.source: {source}: expected images of at least two classes, got {got}")


def _from_folders(source: Path, *, official: bool) -> ImageIndex:
    """The label of an image is the name of the folder that holds it, at any depth."""
    root, index = source.resolve(), ImageIndex([], {})
    tests: list[ImageRecord] = []
    solutions: list[Path] = []
    errors: list[OSError] = []
    for name, subfolders, names in os.walk(source, onerror=errors.append):
        folder = Path(name)
        subfolders.sort()
        for subfolder in subfolders:
            if (folder / subfolder).is_symlink():  # not followed: it may lead outside or in circles
                index.rejected[_relative(folder / subfolder, source)] = "link: to a folder"
        has_images = any(Path(name).suffix.lower() in SUFFIXES for name in names)
        for file in (folder / name for name in sorted(names)):
            path = _relative(file, source)
            if file.name == SOLUTION:
                solutions.append(file)
            if not has_images or _is_ignored(file, source):
                index.other_files += 1
            elif reason := _misplaced(file, source) or _unusable(file, root):
                index.rejected[path] = reason
            elif folder.name == TEST_FOLDER:
                tests.append(ImageRecord(path, file, label="", split="test"))
            else:
                index.images.append(ImageRecord(path, file, folder.name))
    for error in errors:
        path = _relative(Path(error.filename), source)
        index.rejected[path] = f"unreadable: {error.strerror}"
    index.official_test = len(tests)
    if official:
        _add_official_test(index, source, tests, solutions)
    return index


def _is_ignored(file: Path, source: Path) -> bool:
    """Files of the system, tables in the image root, and images without published labels."""
    of_system = file.name.startswith(".") or file.name.lower() in SYSTEM_FILES
    is_table = file.parent == source and file.suffix.lower() not in SUFFIXES
    return of_system or is_table or file.parent.name == UNLABELED_FOLDER


def _misplaced(file: Path, source: Path) -> str:
    """Why a file is no labeled image by its name or folder, or ""."""
    if file.suffix.lower() not in SUFFIXES:
        return f"not an image: by its name, {file.suffix or 'no suffix'}"
    return "no class: lies outside the class folders" if file.parent == source else ""


def _unusable(file: Path, root: Path) -> str:
    """Why a file must not be opened, or ""."""
    try:
        os.fsdecode(file).encode("utf-8")
    except UnicodeEncodeError:
        return "name: not UTF-8"
    if CONTROL.search(str(file)):
        return "name: has control characters"
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for ever
            return "not a file: a device, pipe, socket or folder"
        # A table may name files in linked folders, too.
        return "" if file.resolve().is_relative_to(root) else "link: leaves the source"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return "link: broken" if os.path.islink(file) else "missing: no such file"
        return f"unreadable: {error.strerror}"


def _relative(file: Path, source: Path) -> str:
    r"""Posix path below the source, in which \x.. stands for what isn't UTF-8 or is a control."""
    path = file.relative_to(source).as_posix().encode("utf-8", "surrogateescape")
    return _escape(path.decode("utf-8", "backslashreplace"))


def _escape(path: str) -> str:
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", path)


def _add_official_test(
    index: ImageIndex, source: Path, tests: list[ImageRecord], solutions: list[Path]
) -> None:
    if not tests or len(solutions) != 1:
        raise SourceError(
            f"data.test: official: expected images in test/test and one {SOLUTION} below {source}, "
            f"got {len(tests)} images and {len(solutions)} such files"
        )
    labels = _read_solution(solutions[0])
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
    labels = {}
    for line, row in read_table(file, "image_name"):
        image = row.pop("image_name")
        chosen = [label for label, value in row.items() if value.strip() in ("1", "1.0")]
        if len(chosen) != 1:
            got = f"expected 1 for exactly one class, got {len(chosen)}"
            raise SourceError(f"{file}: line {line}: {got}")
        labels[image] = chosen[0]
    return labels


def _from_table(source: Path, table: Path) -> ImageIndex:
    """A CSV with the columns path, label and perhaps group and split."""
    root, index = source.resolve(), ImageIndex([], {})
    seen = set()
    for line, row in read_table(table, "path", "label"):
        path = checked_path(row["path"], table, line)
        label, split = row["label"].strip(), row.get("split", "").strip()
        if path in seen or not label or split not in ("", *SPLITS):
            raise SourceError(
                f"{table}: line {line}: expected a new path, a label and a split out of "
                f"{', '.join(SPLITS)} or none, got {path!r}, {label!r}, {split!r}"
            )
        seen.add(path)
        if reason := _unusable(source / path, root):
            index.rejected[_escape(path)] = reason
        else:
            patient = row.get("group", "").strip()
            index.images.append(ImageRecord(path, source / path, label, patient, split))
    return index


def _exclude(index: ImageIndex, table: Path | None) -> None:
    if not table:
        return
    rows = read_table(table, "path")
    excluded = {checked_path(row["path"], table, line) for line, row in rows}
    listed, index.images = index.images, []
    for record in listed:
        if record.path in excluded:
            index.rejected[record.path] = f"excluded: by {table.name}"
        else:
            index.images.append(record)
    applied = len(listed) - len(index.images)
    index.excluded = {"applied": applied, "not_found": len(excluded) - applied}


def _correct_labels(index: ImageIndex, table: Path | None) -> None:
    corrections = read_values(table, "label")
    classes = {record.label for record in index.images}
    applied = 0
    for number, record in enumerate(index.images):
        label = corrections.get(record.path)
        if label is None:
            continue
        if label not in classes:
            expected = f"expected a class out of {', '.join(sorted(classes))}"
            raise SourceError(f"{table}: {record.path}: {expected}, got {label!r}")
        index.images[number] = replace(record, label=label)
        applied += 1
    index.label_fixes = {"applied": applied, "not_found": len(corrections) - applied}


def _assign_patients(index: ImageIndex, table: Path | None, pattern: str) -> None:
    """From the image table, or else the table of patients, or else the pattern."""
    patients = read_values(table, "patient")
    expression = None if pattern == "none" else _compile(pattern)
    in_table = in_pattern = 0
    for number, record in enumerate(index.images):
        match = expression.search(record.path) if expression else None
        in_table += record.path in patients
        in_pattern += match is not None
        patient = record.patient or patients.get(record.path) or (match and match[1]) or ""
        index.images[number] = replace(record, patient=patient)
    # A table or pattern made for other images would silently leave every patient unknown.
    count = len(index.images)
    if count and table and not in_table:
        expected = "expected paths of the source's images"
        raise SourceError(f"data.groups: {table}: {expected}, got none of {count}")
    if count and expression and not in_pattern:
        expected = "expected a match in the images' paths"
        raise SourceError(f"data.group_pattern: {expected}, got none in {count}: {pattern!r}")


def _compile(pattern: str) -> re.Pattern[str]:
    expected = "data.group_pattern: expected a regular expression with one (group), the patient"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SourceError(f"{expected}, got {pattern!r}: {error}") from None
    if expression.groups < 1:
        raise SourceError(f"{expected}, got {pattern!r}")
    return expression
