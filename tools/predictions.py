"""Write docs/predictions.zip: the predictions of the committed run, to compute its numbers again.

Run: python -m tools.predictions

They are data/predictions, which else stays in DVC's cache. docs/evidence.md says how to use them.
"""

import json
import zipfile
from pathlib import Path

import yaml

from stages.core.errors import InputError
from stages.core.paths import METRICS, PREDICTIONS
from stages.core.processes import run_cli
from tools.check import LOCK, digest

ARCHIVE = Path("docs/predictions.zip")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes at any time


def main() -> None:
    """Write the archive.

    Raises:
        InputError: when the predictions are not those of dvc.lock, or are of real photographs, of
            which they hold examples.
    """
    if not json.loads((METRICS / "data.json").read_text()).get("synthetic"):
        raise InputError(f"{PREDICTIONS}: expected those of synthetic images, got photographs")
    for dep in yaml.safe_load(LOCK.read_text())["stages"]["evaluate"]["deps"]:
        path = Path(dep["path"])
        if path.parent == PREDICTIONS and digest(path) != dep["md5"]:
            raise InputError(f"{path}: expected the folder of dvc.lock, got another: `dvc repro`")
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(PREDICTIONS.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(file.as_posix(), EPOCH)
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    run_cli(main)
