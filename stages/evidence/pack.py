"""An evidence pack: adversarial examples that anyone can score again, in a folder of four files.

    manifest.json         what is claimed, of which model, within which budget
    images.csv            one row per test image: digests, label, predictions
    tensors.safetensors   perturbations in steps of 1/255; images only where they were asked for
    SHA256SUMS            of the three others, in the format of sha256sum

A pack comes from strangers. So no file is unpickled, no path is read from a pack (the names are
fixed, links are refused), sizes are limited before anything is read, and nothing is written.
"""

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.files import (
    FileFormatError,
    read_csv,
    read_json,
    write_bytes,
    write_csv,
    write_json,
)
from stages.core.norms import NORMS, Budget
from stages.core.params import check_plausible
from stages.core.predictions import CLEAN
from stages.core.tables import check_columns

MANIFEST, IMAGES, TENSORS, SUMS = (
    "manifest.json", "images.csv", "tensors.safetensors", "SHA256SUMS"
)  # fmt: skip
MAX_BYTES = {MANIFEST: 2**20, IMAGES: 2**28, TENSORS: 2**32, SUMS: 2**12}
WRITER = "stages.pack"
PERTURBATIONS, PIXELS = "perturbations", "images"
COLUMNS = (
    *("file_sha256", "pixels_sha256", "label", "prediction"),
    *("attack", "adversarial_prediction"),
)
DIGEST = re.compile(r"[0-9a-f]{64}")
ATTACK = re.compile(r"\w{1,40}")  # a name that can be printed


class Manifest(BaseModel):
    """What a pack claims.

    Attributes:
        version: of the format.
        model: the name of the model in the pipeline.
        model_sha256: of its safetensors file.
        code_sha256: of the code that made the pack.
        classes: names in the order of the logits.
        image_size: height and width in pixels.
        crop: as `data.crop`: how an image is made of a photograph.
        norm: of the budget.
        eps: of the budget, in pixel units.
        images: test images.
        clean_correct: of them classified correctly.
        robust_correct: of these, those for which the pack holds no adversarial example.
        params: `seed`, `attack` and `attack_eval` of the run, for information.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    version: Literal[1]
    model: Literal["clean", "adv"]
    model_sha256: str = Field(pattern=f"^{DIGEST.pattern}$")
    code_sha256: str = Field(pattern=f"^{DIGEST.pattern}$")
    classes: tuple[str, ...] = Field(min_length=2, max_length=10_000)
    image_size: int = Field(ge=16, le=4096)
    crop: Literal["none", "square", "cervix"]
    norm: Literal["linf", "l2"]
    eps: float
    images: int = Field(ge=1)
    clean_correct: int = Field(ge=0)
    robust_correct: int = Field(ge=0)
    params: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_plausible([self.eps], self.norm)
        if not all(name.isprintable() for name in self.classes):
            raise ValueError("expected names of classes that can be printed")
        if not self.robust_correct <= self.clean_correct <= self.images:
            raise ValueError("expected robust_correct ≤ clean_correct ≤ images")
        return self

    @property
    def budget(self) -> Budget:
        """Of the perturbations."""
        return Budget(NORMS[self.norm], self.eps)


@dataclass(frozen=True)
class EvidencePack:
    """A pack whose files are intact and fit each other; whether its claims hold is another thing.

    Attributes:
        folder: where it lies.
        manifest: what it claims.
        rows: images.csv.
        has_images: whether it holds the images.
    """

    folder: Path
    manifest: Manifest
    rows: pd.DataFrame
    has_images: bool

    @property
    def sha256(self) -> str:
        """What identifies it: the digest of SHA256SUMS."""
        return sha256(self.folder / SUMS)

    @property
    def perturbed(self) -> np.ndarray:
        """(N,) bool: which images it holds a perturbation for."""
        return (self.rows["attack"] != CLEAN).to_numpy()

    def images(self, start: int, stop: int) -> np.ndarray:
        """uint8 (B, H, W, 3): the images of these rows, where the pack holds images."""
        return self._read(PIXELS, start, stop)

    def perturbations(self, start: int, stop: int) -> np.ndarray:
        """Whole numbers (B, 3, H, W) in steps of 1/255: of these rows; 0 where it has none."""
        chosen = self.perturbed
        first, last = chosen[:start].sum(), chosen[:stop].sum()
        found = self._read(PERTURBATIONS, int(first), int(last))
        levels = np.zeros((stop - start, *found.shape[1:]), np.int16)
        levels[chosen[start:stop]] = found
        return levels

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        with safetensors.safe_open(self.folder / TENSORS, "np") as file:
            return file.get_slice(name)[start:stop]


def sha256(file: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pixels_sha256(image: np.ndarray) -> str:
    """Of the pixels of an image, uint8 (H, W, 3)."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def smallest_type(levels: np.ndarray) -> np.ndarray:
    """Whole numbers from -255 to 255 as int8 where all fit, else as int16."""
    fits = not levels.size or np.abs(levels).max() <= np.iinfo(np.int8).max
    return levels.astype(np.int8 if fits else np.int16)


def write_pack(
    folder: Path, manifest: Manifest, rows: pd.DataFrame, tensors: Mapping[str, np.ndarray]
) -> EvidencePack:
    """Write a pack, and read it back as a stranger's.

    Args:
        folder: new, or of an earlier pack, whose files are replaced.
        manifest: see there.
        rows: images.csv.
        tensors: perturbations (M, 3, H, W), for the rows with an attack; perhaps images.
    """
    (folder / SUMS).unlink(missing_ok=True)  # without it, a pack that is half written is none
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    write_csv(folder / IMAGES, rows)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_bytes(folder / TENSORS, safetensors.numpy.save(arrays))
    names = (MANIFEST, IMAGES, TENSORS)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    write_bytes(folder / SUMS, "".join(lines).encode())
    return read_pack(folder)


def read_pack(folder: Path) -> EvidencePack:
    """Open a pack.

    Raises:
        FileFormatError: naming the file that is missing, too many, too large, a link, damaged, or
            doesn't fit the others.
    """
    _check_files(folder)
    _check_sums(folder)
    manifest = read_json(folder / MANIFEST, WRITER, Manifest)
    rows = read_csv(folder / IMAGES, WRITER, COLUMNS)
    _check_rows(rows, manifest, folder / IMAGES)
    return EvidencePack(folder, manifest, rows, _check_tensors(folder / TENSORS, manifest, rows))


def _check_files(folder: Path) -> None:
    """Four files of these names, none of them a link, none too large."""
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: expected the folder of an evidence pack, got none")
    names = sorted(file.name for file in folder.iterdir())
    if names != sorted(MAX_BYTES):
        raise FileFormatError(
            f"{folder}: expected the files {', '.join(MAX_BYTES)}, got {', '.join(names) or 'none'}"
        )
    for name, most in MAX_BYTES.items():
        status = (folder / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{folder / name}: expected a file, got a link or folder")
        if status.st_size > most:
            raise FileFormatError(
                f"{folder / name}: expected at most {most:,} bytes, got {status.st_size:,}"
            )


def _check_sums(folder: Path) -> None:
    """SHA256SUMS has the digests of the three other files."""
    text = (folder / SUMS).read_text("utf-8", errors="replace")
    lines = re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.M)
    recorded = {name: digest for digest, name in lines}
    for name in (MANIFEST, IMAGES, TENSORS):
        digest = sha256(folder / name)
        if recorded.get(name) != digest:
            raise FileFormatError(
                f"{folder / name}: expected the SHA-256 in {SUMS} "
                f"({recorded.get(name, 'none')}), got {digest}"
            )


def _check_rows(rows: pd.DataFrame, manifest: Manifest, file: Path) -> None:
    check_columns(rows, COLUMNS, str(file))
    if len(rows) != manifest.images:
        raise FileFormatError(f"{file}: expected {manifest.images} rows, got {len(rows)}")
    patterns = {"file_sha256": DIGEST, "pixels_sha256": DIGEST, "attack": ATTACK}
    for column, pattern in patterns.items():
        wrong = ~rows[column].str.fullmatch(pattern)
        if wrong.any():
            got = rows.loc[wrong, column].iloc[0]
            raise FileFormatError(f"{file}: {column}: expected {pattern.pattern}, got {got!r}")
    for column in ("label", "prediction", "adversarial_prediction"):
        if unknown := sorted(set(rows[column]) - set(manifest.classes)):
            raise FileFormatError(
                f"{file}: {column}: expected one of {', '.join(manifest.classes)}, "
                f"got {unknown[0]!r}"
            )


def _check_tensors(file: Path, manifest: Manifest, rows: pd.DataFrame) -> bool:
    """Whether the images are among the tensors. Raises FileFormatError for other shapes, types."""
    side = manifest.image_size
    perturbed = int((rows["attack"] != CLEAN).sum())
    expected = {
        PERTURBATIONS: ([perturbed, 3, side, side], ("I8", "I16")),
        PIXELS: ([len(rows), side, side, 3], ("U8",)),
    }
    try:
        with safetensors.safe_open(file, "np") as tensors:
            found = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            described = {name: (part.get_shape(), part.get_dtype()) for name, part in found.items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise FileFormatError(f"{file}: expected a safetensors file, got: {error}") from None
    if PERTURBATIONS not in described:
        raise FileFormatError(f"{file}: expected the tensor {PERTURBATIONS}, got none")
    for name, (shape, kind) in described.items():
        wanted = expected.get(name)
        if wanted is None or shape != wanted[0] or kind not in wanted[1]:
            raise FileFormatError(
                f"{file}: expected {' or '.join(expected)} for {len(rows)} images of {side} "
                f"pixels, got {name}: {kind} of shape {tuple(shape)}"
            )
    return PIXELS in described
