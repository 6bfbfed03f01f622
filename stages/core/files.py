"""Files between stages: how they are written and read, and their digests."""

import hashlib
import io
import json
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stages.core.errors import InputError

if TYPE_CHECKING:  # what logs to MLflow and the workers of preprocess do without it
    import pandas as pd


class FileFormatError(InputError):
    """A file isn't what the pipeline wrote: damaged, edited, of another kind; it is named."""


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Add the file's name to an OSError without one, as of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


@contextmanager
def open_atomic(file: Path, suffix: str = ".part") -> Iterator[BinaryIO]:
    """A stream to a part file, which replaces the file at the end, unless there is an error.

    What a killed process leaves behind, the next one overwrites.

    Raises:
        OSError: no space, no permission; with the name of the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + suffix)
    with naming_file(file):
        try:
            with part.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_bytes(file: Path, content: bytes) -> None:
    """The whole content or none of it; errors as `open_atomic`."""
    with open_atomic(file) as stream:
        stream.write(content)


def md5(path: Path) -> str:
    """The digest by which dvc.lock knows a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def round_floats(value: Any) -> Any:
    """The same nested dict with its floats at 6 significant digits, as in the tables."""
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_json(file: Path, content: Any) -> None:
    """Sorted keys, indented; refuses NaN."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(file, f"{text}\n".encode())


def read_json(file: Path, stage: str, schema: Any) -> Any:
    """The content of a JSON file that a stage wrote, checked against a type that pydantic knows.

    Raises:
        FileFormatError: when it is missing or isn't that.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(schema).validate_json(file.read_bytes())
    except FileNotFoundError:
        raise FileFormatError(
            f"{file}: expected a file written by {stage}, got none: run that stage first"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileFormatError(
            f"{file}: expected JSON written by {stage}, got {where or 'the file'}: {first['msg']}"
        ) from None


def write_csv(file: Path, table: "pd.DataFrame") -> None:
    """Numbers at 6 significant digits."""
    write_bytes(file, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())


def read_csv(file: Path, stage: str, text: Container[str]) -> "pd.DataFrame":
    """The table that a stage wrote: columns in ``text`` are text, all others numbers.

    A class may be called ``1`` or ``NA``.

    Raises:
        FileFormatError: when it is missing, isn't UTF-8 or isn't such a table.
    """
    import numpy as np
    import pandas as pd

    try:
        content = file.read_bytes().decode()
        if "\0" in content:
            raise ValueError("a NUL character")
        # All as text first: a number that is none is then shown as it stands there.
        table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # where pandas puts what has no column
            raise ValueError("more fields than columns")
        for column in table.columns:
            if column not in text:
                table[column] = pd.to_numeric(table[column])
                if not np.isfinite(table[column].to_numpy(float)).all():
                    raise ValueError(f"{column}: a number that is not finite")
        return table
    except FileNotFoundError:
        raise FileFormatError(
            f"{file}: expected a file written by {stage}, got none: run that stage first"
        ) from None
    except ValueError as error:  # pandas' own errors and UnicodeDecodeError among them
        raise FileFormatError(
            f"{file}: expected a table written by {stage}, got an error: {error}"
        ) from None
