"""What the folders say: the class and the split of a picture, or that they don't tell.

The class is the folder that holds the picture, unless a pattern names another part of the path.
Where that rule would make classes of something else (patients, masks, splits), or would lose a
class, the layout is refused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from stages.core.dataset import natural_sort_key
from stages.photographs.source_files import SourceFiles
from stages.photographs.tables import SourceError, normal_form

MAX_CLASSES = 50  # more folders than that are patients
# The competition's test images lie in test/test, those of its second stage, whose labels were
# never published, in test_stg2.
TEST_FOLDER, UNLABELED_FOLDER = "test", "test_stg2"
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
HINT = (
    "data.class_pattern names the part of the path that is the class, ^([^/]+)/ the first folder; "
    "data.table names the class of each image"
)


def compile_pattern(pattern: str, key: str, what: str) -> re.Pattern[str] | None:
    """The expression that `data.<key>` holds, None for none; what: its first group means.

    Raises:
        SourceError: when it isn't a regular expression with a group.
    """
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


def class_of(path: PurePosixPath, pattern: re.Pattern[str] | None) -> str:
    """The class of a picture by its path, "" for none."""
    if pattern is None:
        return normal_form(path.parent.name)
    match = pattern.search(normal_form(path.as_posix()))
    return (match and match[1]) or ""


def split_of(path: PurePosixPath) -> str:
    """The split that a folder above the one of the class is named after, "" for none."""
    names = (name.casefold() for name in path.parts[:-2])
    return next((SPLIT_FOLDERS[name] for name in names if name in SPLIT_FOLDERS), "")


def unlabeled_test_folders(folders: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    """The folders `test` of test images without classes: test/test, or test next to train.

    Args:
        folders: those that hold pictures.
    """
    folders = set(folders)
    above = {parent for folder in folders for parent in (folder, *folder.parents)}
    return {
        folder
        for folder in folders
        if folder.name == TEST_FOLDER
        and (folder.parent.name == TEST_FOLDER or folder.parent / "train" in above)
    }


def check_layout(folders: Mapping[PurePosixPath, str], files: SourceFiles, source: object) -> None:
    """Refuse folders of which it isn't plain that they are the classes, and all of them.

    Args:
        folders: folder that holds pictures -> class.
        files: all of the source.
        source: for the message.

    Raises:
        SourceError: with the first thing that is wrong, and what to do.
    """
    _check_no_folder_is_lost(folders, files, source)
    problem = _nested(set(folders)) or _unequal_depth(folders) or _not_classes(folders)
    if problem:
        raise SourceError(f"data.source: {source}: expected one folder per class, got {problem}")


def _check_no_folder_is_lost(
    folders: Iterable[PurePosixPath], files: SourceFiles, source: object
) -> None:
    for path, reason in sorted(files.closed.items()):
        raise SourceError(
            f"data.source: {source}: expected folders of images, got {path}, {reason}, whose "
            "images would be lost: move or copy the folder there, or remove it"
        )
    above = {parent for path in files.pictures for parent in PurePosixPath(path).parents}
    neighbors_in = {folder.parent for folder in folders}
    for folder in files.folders:
        if folder not in above and folder.parent in neighbors_in:
            raise SourceError(
                f"data.source: {source}: expected images in each folder next to those of the "
                f"classes, got none in {folder}{_content(folder, files)}: move it, or give it a "
                "name that begins with a dot"
            )


def _content(folder: PurePosixPath, files: SourceFiles) -> str:
    """An example of the files below a folder, in parentheses."""
    inside = [path for path in files.paths() if folder in PurePosixPath(path).parents]
    if not inside:
        return " (it is empty)"
    first = min(inside)
    reason = f", {files.rejected[first]}" if first in files.rejected else ""
    return f" (other files: {len(inside)}, the first is {first}{reason})"


def _nested(folders: set[PurePosixPath]) -> str:
    for folder in sorted(folders):
        outer = [parent for parent in folder.parents if parent in folders]
        if outer:
            return f"images in {outer[0]} and in {folder} below it: {HINT}"
    return ""


def _unequal_depth(folders: Mapping[PurePosixPath, str]) -> str:
    depths: dict[str, set[int]] = {}
    for folder, label in folders.items():
        depths.setdefault(label, set()).add(len(folder.parts))
    if not depths or set.intersection(*depths.values()):
        return ""
    shallow, deep = min(folders, key=_depth), max(folders, key=_depth)
    return f"classes at unequal depths, {shallow} and {deep}: {HINT}"


def _depth(folder: PurePosixPath) -> int:
    return len(folder.parts)


def _not_classes(folders: Mapping[PurePosixPath, str]) -> str:
    """Too many classes, patients below classes, or splits without classes."""
    classes = sorted(set(folders.values()), key=natural_sort_key)
    shown = ", ".join(classes[:3])
    if len(classes) > MAX_CLASSES:
        return f"{len(classes)} classes ({shown}, …): {HINT}"
    if classes and {name.casefold() for name in classes} <= set(SPLIT_FOLDERS):
        return f"only the folders {shown} of a split: {HINT}"
    if TEST_FOLDER in classes:
        return (
            f"a folder {TEST_FOLDER} among the classes {shown}: rename it if it is a class, "
            "else move it out of the source"
        )
    parents = {folder.parent for folder in folders}
    if 1 < len(parents) < len(folders) == len(classes):
        above = ", ".join(sorted(parent.name for parent in parents)[:3])
        return (
            f"the classes {shown}, …, none of which lies in two of the folders {above}: are these "
            f"the classes, and those patients? {HINT}"
        )
    return ""
