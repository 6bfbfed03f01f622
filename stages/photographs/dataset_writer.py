"""Writing the processed dataset that `core/dataset.py` reads, the manifest last."""

import csv
import io
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stages.core.dataset import COLUMNS, IMAGES, MANIFEST
from stages.core.files import naming_file, open_atomic, write_bytes
from stages.photographs.reading import DecodedImages

REJECTED, SUBGROUPS = "rejected.csv", "subgroups.csv"
SPOOL = "decoded.part"  # pixels of every valid image in the order of decoding
CROP_COLUMNS = ("crop", "left", "top", "right", "bottom")
METADATA = ("width", "height", "mode", "stain_guess", "disputed", *CROP_COLUMNS)


@contextmanager
def open_pixel_spool(folder: Path) -> Iterator[BinaryIO]:
    """A scratch file for pixels in the dataset's folder, whose previous dataset is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, IMAGES, SUBGROUPS):
        (folder / name).unlink(missing_ok=True)
    try:
        with naming_file(folder / SPOOL), (folder / SPOOL).open("w+b") as spool:
            yield spool
    finally:
        (folder / SPOOL).unlink(missing_ok=True)


def write_rejected(folder: Path, rejected: Mapping[str, str]) -> None:
    """rejected.csv: path,reason, sorted by path."""
    _write_csv(folder / REJECTED, ("path", "reason"), sorted(rejected.items()))


def write_dataset(
    folder: Path,
    spool: BinaryIO,
    size: int,
    decoded: DecodedImages,
    groups: Sequence[str],
    splits: Mapping[int, str],
    conflicts: Container[int],
) -> None:
    """images.npy, subgroups.csv and manifest.csv for the rows of `splits`, in that order.

    subgroups.csv (path,column,value) is there only if the table of patients has further columns.
    It is apart from the manifest, because no model is trained on it.

    Args:
        folder: of the dataset.
        spool: the pixels of all decoded rows, at row x size x size x 3.
        size: of an image, in pixels.
        decoded: all decoded images.
        groups: of all rows.
        splits: row -> split, for the rows to write.
        conflicts: rows whose duplicates have another label.
    """
    shape = (size, size, 3)
    header = np.lib.format.header_data_from_array_1_0(np.empty(shape, np.uint8))
    header["shape"] = (len(splits), *shape)
    with open_atomic(folder / IMAGES) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        # Streamed: a memory map of a large dataset would fill the memory before it is on disk.
        for row in splits:
            spool.seek(row * size * size * 3)
            stream.write(spool.read(size * size * 3))
    rows, subgroups = [], []
    for row, split in splits.items():
        record, image, box = (
            decoded.records[row],
            decoded.metadata[row],
            decoded.metadata[row].crop_box,
        )
        edges = (f"{edge:.4f}" for edge in (box.left, box.top, box.right, box.bottom))
        original = (image.width, image.height, image.mode, image.stain)
        columns = (record.path, record.label, groups[row], split, decoded.hashes[row])
        rows.append((*columns, *original, int(row in conflicts), box.kind, *edges))
        subgroups += [(record.path, *pair) for pair in record.subgroups.items()]
    if subgroups:
        _write_csv(folder / SUBGROUPS, ("path", "column", "value"), subgroups)
    _write_csv(folder / MANIFEST, (*COLUMNS, *METADATA), rows)


def _write_csv(file: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(file, text.getvalue().encode())
