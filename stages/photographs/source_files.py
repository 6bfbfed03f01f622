"""Every file below the source, accounted for: a picture, a rejected file or a known bystander.

Files are told apart by their names; of those whose name says nothing, the first bytes are read.
"""

import errno
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".avif", ".heic", ".heif", ".jp2", ".dcm", ".dicom",
)  # fmt: skip
# Of what accompanies photographs.
DOCUMENTS = (
    ".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".xmp", ".yaml", ".yml", ".html", ".log",
    ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".db", ".ini", ".zip", ".7z", ".rar", ".tar",
    ".gz", ".py", ".ipynb", ".npy", ".mat",
)  # fmt: skip
SYSTEM_FOLDERS = (  # thumbnails and deleted files of operating systems and network storage
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "lost+found",
    "$recycle.bin", "system volume information",
)  # fmt: skip
MASK_FOLDERS = ("mask", "masks", "segmentation", "segmentations", "ground_truth", "groundtruth")
MASK_NAME = re.compile(r"(.+?)[ _-](mask|seg|segmentation|groundtruth|gt)", re.IGNORECASE)
SIGNATURE = re.compile(  # at the beginning of JPEG, PNG, GIF, TIFF, WebP, AVIF and HEIC, DICOM
    rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP|....ftyp|.{128}DICM", re.DOTALL
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # end lines of tables and logs, steer terminals


@dataclass
class SourceFiles:
    """What lies below a source; paths are relative to it, posix.

    Attributes:
        pictures: path -> file, of files that should be images.
        rejected: path -> "kind: detail".
        bystanders: kind -> paths, of files that are left out for what they are.
        folders: those that were looked into for pictures.
        closed: folder that can't be looked into -> why.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    bystanders: dict[str, list[str]] = field(default_factory=dict)
    folders: list[PurePosixPath] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """Of all files."""
        others = [path for paths in self.bystanders.values() for path in paths]
        return [*self.pictures, *self.rejected, *others]


def find_files(source: Path) -> SourceFiles:
    """Walk the source; links to folders are not followed: they may lead outside or in circles."""
    found = SourceFiles()
    errors: list[OSError] = []
    for name, subfolders, names in os.walk(source, onerror=errors.append):
        folder = Path(name)
        subfolders.sort()
        kind = _kind_of_folder(folder.relative_to(source).parts)
        if not kind:
            found.folders.append(PurePosixPath(relative_path(folder, source)))
            for subfolder in subfolders:
                path = folder / subfolder
                if path.is_symlink() and not _kind_of_folder((subfolder,)):
                    found.closed[relative_path(path, source)] = "a link to a folder"
        _sort_files(folder, sorted(names), kind, source, found)
    for error in errors:
        closed = relative_path(Path(error.filename), source)
        found.closed[closed] = f"unreadable: {error.strerror}"
    return found


def _kind_of_folder(parts: tuple[str, ...]) -> str:
    """The kind of all files in a folder with this path, "" for no special one."""
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if any(part.casefold() in SYSTEM_FOLDERS for part in parts):
        return "of the system"
    return "masks" if parts and parts[-1].casefold() in MASK_FOLDERS else ""


def _sort_files(
    folder: Path, names: list[str], folder_kind: str, source: Path, found: SourceFiles
) -> None:
    root, stems = source.resolve(), {Path(name).stem.casefold() for name in names}
    unknown, has_pictures = [], False
    for file in (folder / name for name in names):
        path = relative_path(file, source)
        if kind := folder_kind or _kind_of_file(file.name, stems):
            found.bystanders.setdefault(kind, []).append(path)
        elif reason := unusable(file, root):
            found.rejected[path] = reason
        elif file.suffix.lower() in SUFFIXES or _has_signature(file):
            found.pictures[path], has_pictures = file, True
        else:
            unknown.append((path, file.suffix or "no suffix"))
    for path, suffix in unknown:
        if has_pictures:
            found.rejected[path] = f"not an image: by its name, {suffix}"
        else:
            found.bystanders.setdefault("other files", []).append(path)


def _kind_of_file(name: str, stems: Collection[str]) -> str:
    """stems: of all files in the folder."""
    if name.startswith("."):
        return "hidden"
    if Path(name).suffix.lower() in DOCUMENTS:
        return "documents"
    mask = MASK_NAME.fullmatch(Path(name).stem)
    return "masks" if mask and mask[1].casefold() in stems else ""


def _has_signature(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return SIGNATURE.match(stream.read(132)) is not None
    except OSError:
        return False


def unusable(file: Path, root: Path) -> str:
    """Why a file must not be opened, or ""; root: the source, resolved."""
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


def relative_path(file: Path, source: Path) -> str:
    r"""Posix path below the source, in which \x.. stands for what isn't UTF-8 or is a control."""
    path = file.relative_to(source).as_posix().encode("utf-8", "surrogateescape")
    return escape(path.decode("utf-8", "backslashreplace"))


def escape(path: str) -> str:
    r"""The text with \x.. for its control characters."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", path)
