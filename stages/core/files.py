"""Files between stages: how they are written, and their digests."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what logs to MLflow and the workers of preprocess do without it
    import pandas as pd


def md5(path: Path) -> str:
    """The digest by which dvc.lock knows a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def round_floats(value: Any) -> Any:
    """The same nested dict with its floats at 6 significant digits, as in the tables: enough, and stable in a diff."""
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_json(file: Path, content: Any) -> None:
    """Sorted keys, indented; refuses NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_csv(file: Path, table: "pd.DataFrame") -> None:
    """Numbers at 6 significant digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
