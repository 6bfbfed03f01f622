"""A digest of this package's source, the same in all processes that run the same code."""

import hashlib
from pathlib import Path

# Computed on import: the files may change while a long-lived worker still runs older code.
CODE_DIGEST = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()
