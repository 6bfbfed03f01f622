"""Files between stages: their digests, and how they are written."""

import hashlib
from pathlib import Path


def md5(path: Path) -> str:
    """The digest by which dvc.lock knows a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
