"""The processed dataset: every accepted image as uint8 pixels, memory-mapped, and a manifest with one row for each.

    images.npy     uint8 (N, H, W, 3), RGB
    manifest.csv   row i describes images[i]: path, label, group, split, sha256, ...; sorted by path

`preprocess` writes it, all later stages read it through `load_dataset`. The manifest is removed first and written last, so a
folder with a manifest holds the images that belong to it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.core.errors import InputError

if TYPE_CHECKING:  # 65 MiB that the workers of preprocess, which need the names below only, do without
    import pandas as pd

IMAGES, MANIFEST = "images.npy", "manifest.csv"
COLUMNS = ("path", "label", "group", "split", "sha256")  # every manifest has these; more may follow
SPLITS = ("train", "val", "test")
TRANSFORMATION_ZONE = re.compile(r"type[ _]?[123]", re.IGNORECASE)
STAINS = ("acetic acid or none", "Lugol's iodine", "green filter")  # values of the column stain_guess


class DatasetError(InputError):
    """The processed dataset is missing, incomplete, or its files don't belong together; the message names the file."""


@dataclass(frozen=True)
class ImageDataset:
    """Images ready for training.

    Attributes:
        images: uint8 (N, H, W, 3), RGB, read-only memory map.
        manifest: N rows.
        classes: names in natural order.
        labels: int64 (N,), index into classes.
    """

    images: np.ndarray
    manifest: "pd.DataFrame"
    classes: tuple[str, ...]
    labels: np.ndarray

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[1]

    def split_rows(self, split: str) -> np.ndarray:
        """Rows of one split, ascending, int64."""
        if split not in SPLITS:
            raise ValueError(f"expected a split out of {', '.join(SPLITS)}, got {split!r}")
        return np.flatnonzero(self.manifest["split"].to_numpy() == split)


def natural_sort_key(name: str) -> tuple:
    """Sort key: numbers by value, so that Type_2 comes before Type_10; the name itself breaks ties (Type_1, Type_01)."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)), name


def is_transformation_zone(classes: Iterable[str]) -> bool:
    """Whether the classes are the types 1 to 3 of the transformation zone, by their names."""
    return all(TRANSFORMATION_ZONE.fullmatch(name) for name in classes)


def load_dataset(folder: Path | str) -> ImageDataset:
    """Open the processed dataset in a folder.

    Raises:
        DatasetError: when a file is missing or doesn't fit the others.
    """
    import pandas as pd

    folder = Path(folder)
    for name in (MANIFEST, IMAGES):
        if not (folder / name).is_file():
            raise DatasetError(f"{folder / name}: expected a file written by preprocess, got none: run that stage first")
    try:
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DatasetError(f"{folder / IMAGES}: expected a NumPy array, got {error}") from None
    # Class names such as "1" or "NA" are names, not numbers or missing values.
    manifest = pd.read_csv(folder / MANIFEST, dtype=dict.fromkeys(COLUMNS, str), keep_default_na=False)
    missing = [name for name in COLUMNS if name not in manifest]
    if missing:
        raise DatasetError(
            f"{folder / MANIFEST}: expected the columns {', '.join(COLUMNS)}, got none named {', '.join(missing)}"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(manifest):
        raise DatasetError(
            f"{folder / IMAGES}: expected uint8 of shape ({len(manifest)}, H, W, 3), one image per row of {MANIFEST}, "
            f"got {images.dtype} of shape {images.shape}"
        )
    unknown = sorted(set(manifest["split"]) - set(SPLITS))
    if unknown:
        raise DatasetError(f"{folder / MANIFEST}: expected the splits {', '.join(SPLITS)}, got {', '.join(map(repr, unknown))}")
    classes = tuple(sorted(set(manifest["label"]), key=natural_sort_key))
    labels = manifest["label"].map({name: index for index, name in enumerate(classes)}).to_numpy(np.int64)
    return ImageDataset(images, manifest, classes, labels)
