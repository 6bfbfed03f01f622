"""Which images there are, what their labels, patients and splits are, and which files are none.

The source is walked, or read from a table; no image is opened here. Every file ends up in exactly
one of `ImageIndex.images`, `rejected`, `bystanders`, or the count `official_test`.
"""

from pathlib import Path, PurePosixPath

from stages.core.dataset import SPLITS
from stages.core.params import DataParams
from stages.photographs.annotations import assign_patients, correct_labels, exclude
from stages.photographs.image_index import IN_USE, ImageIndex, ImageRecord
from stages.photographs.layout import (
    UNLABELED_FOLDER,
    check_layout,
    class_of,
    compile_pattern,
    split_of,
    unlabeled_test_folders,
)
from stages.photographs.official_test import SOLUTION, add_official_test
from stages.photographs.source_files import (
    CONTROL,
    SourceFiles,
    escape,
    find_files,
    unusable,
)
from stages.photographs.tables import (
    PathLookup,
    SourceError,
    check_any_matched,
    find_table,
    match_rows,
    normal_form,
    patient_name,
    read_table,
)

SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in a source of synthetic images: every report says so


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
    exclude(index, tables["exclude"], lookup)
    correct_labels(index, tables["label_fixes"], lookup)
    assign_patients(index, tables["groups"], lookup, data.group_pattern)
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
        if CONTROL.search("".join(text for pair in record.subgroups.items() for text in pair)):
            raise SourceError(
                f"data.groups: {record.path}: expected columns and values without control "
                f"characters, got {record.subgroups}"
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
    pattern = compile_pattern(data.class_pattern, "class_pattern", "the class")
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
        add_official_test(index, source, tests)
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
