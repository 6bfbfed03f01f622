"""The processed dataset: uint8 pixels, memory-mapped, and a manifest with one row per image.

    images.npy     uint8 (N, H, W, 3), RGB
    manifest.csv   row i describes images[i]: path, label, group, split, sha256, ...; sorted by path

`preprocess` writes it, all later stages read it through `load_dataset`. The manifest is removed
first and written last, so a folder with a manifest holds the images that belong to it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.core.files import FileFormatError, read_csv

if (
    TYPE_CHECKING
):  # 65 MiB that the workers of preprocess, which need the names below only, do without
    import pandas as pd

IMAGES, MANIFEST = "images.npy", "manifest.csv"
COLUMNS = ("path", "label", "group", "split", "sha256")  # every manifest has these; more may follow
TEXT_COLUMNS = (*COLUMNS, "mode", "stain_guess", "crop")
SPLITS = ("train", "val", "test")
TRANSFORMATION_ZONE = re.compile(r"type[ _]?[123]", re.IGNORECASE)
STAINS = (
    "acetic acid or none",
    "Lugol's iodine",
    "green filter",
)  # values of the column stain_guess


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
    """Sort key: numbers by value, Type_2 before Type_10; then the name (Type_1, Type_01)."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold())
        for part in re.split(r"(\d+)", name)
    ), name


def is_transformation_zone(classes: Iterable[str]) -> bool:
    """Whether the classes are the types 1 to 3 of the transformation zone, by their names."""
    return all(TRANSFORMATION_ZONE.fullmatch(name) for name in classes)


def load_dataset(folder: Path | str) -> ImageDataset:
    """Open the processed dataset in a folder.

    Raises:
        FileFormatError: when a file is missing or doesn't fit the others.
    """
    folder = Path(folder)
    file = folder / IMAGES
    manifest = read_csv(folder / MANIFEST, "preprocess", TEXT_COLUMNS)
    _validate_manifest(manifest, folder / MANIFEST)
    try:
        images = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileFormatError(
            f"{file}: expected a file written by preprocess, got none: run that stage first"
        ) from None
    except (
        Exception
    ) as error:  # NumPy evaluates the header as Python: damage gives nearly every kind of error
        raise FileFormatError(f"{file}: expected a NumPy array, got {error}") from None
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != 3
        or len(images) != len(manifest)
    ):
        raise FileFormatError(
            f"{file}: expected uint8 of shape ({len(manifest)}, H, W, 3), "
            f"one image per row of {MANIFEST}, got {images.dtype} of shape {images.shape}"
        )
    classes = tuple(sorted(set(manifest["label"]), key=natural_sort_key))
    labels = (
        manifest["label"]
        .map({name: index for index, name in enumerate(classes)})
        .to_numpy(np.int64)
    )
    return ImageDataset(images, manifest, classes, labels)


def _validate_manifest(manifest: "pd.DataFrame", file: Path) -> None:
    """Raise FileFormatError unless each image has a path, label, group and a known split."""
    if missing := [name for name in COLUMNS if name not in manifest]:
        raise FileFormatError(
            f"{file}: expected the columns {', '.join(COLUMNS)}, "
            f"got none named {', '.join(missing)}"
        )
    for column in COLUMNS:
        if (empty := manifest[column] == "").any():
            raise FileFormatError(
                f"{file}: row {empty.to_numpy().argmax() + 1}: {column}: expected a value, got none"
            )
    if (double := manifest["path"].duplicated()).any():
        raise FileFormatError(
            f"{file}: expected one row per path, got two of {manifest.loc[double, 'path'].iloc[0]}"
        )
    if (found := set(manifest["split"])) != set(SPLITS):
        raise FileFormatError(
            f"{file}: split: expected images in {', '.join(SPLITS)}, got {', '.join(sorted(found))}"
        )
    if (
        straddling := manifest.groupby("group")["split"]
        .nunique()
        .loc[lambda splits: splits > 1]
        .index.tolist()
    ):
        raise FileFormatError(
            f"{file}: expected each group in one split, got {straddling[0]} in several"
        )
