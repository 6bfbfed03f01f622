"""What is known of the listed files before any is opened."""

from dataclasses import dataclass, field
from pathlib import Path

IN_USE = "in use"  # kind of the bystanders that are read: tables and the marker


@dataclass(frozen=True)
class ImageRecord:
    """One file that should be an image.

    Attributes:
        path: relative to the source, posix.
        file: where it is.
        label: its class.
        patient: "" when unknown.
        split: "" when not given.
        subgroups: column -> value, of the further columns of the table of patients; no empty ones.
    """

    path: str
    file: Path
    label: str
    patient: str = ""
    split: str = ""
    subgroups: dict[str, str] = field(default_factory=dict)


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
