"""The digest by which a result names the code that it came from."""

import hashlib
from pathlib import Path

import stages


def code_digest() -> str:
    """SHA-256 of all Python files of the package, in the order of their paths."""
    digest = hashlib.sha256()
    for file in sorted(Path(stages.__path__[0]).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
