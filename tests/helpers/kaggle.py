"""File names of the Kaggle dataset."""

import csv
import os
from pathlib import Path

COUNTS = {"train": (250, 781, 450), "additional": (1191, 3567, 1976)}  # images of the types 1, 2, 3


def kaggle_names(folders: dict[str, str]) -> list[str]:
    """Paths of all 8,215 images.

    The true names where COLPOSCOPY_KAGGLE_LISTING names their list, else invented ones.
    """
    listing = os.environ.get("COLPOSCOPY_KAGGLE_LISTING")
    if not listing:
        parts = [
            (part, k, count) for part, counts in COUNTS.items() for k, count in enumerate(counts, 1)
        ]
        names = [
            folders[part].format(k) + f"/{n}.jpg" for part, k, count in parts for n in range(count)
        ]
        # Two of the images with label corrections have larger numbers than their type has images.
        last = [name for name in names if name.startswith(folders["train"].format(3))][-2:]
        renamed = dict(
            zip(last, [folders["train"].format(3) + f"/{n}.jpg" for n in (968, 1120)], strict=True)
        )
        return [renamed.get(name, name) for name in names]
    with Path(listing).open(newline="") as file:
        names = [
            f"{folders[r['split']].format(r['label'][-1])}/{r['file']}"
            for r in csv.DictReader(file)
        ]
    empty = ((1, "5893"), (2, "2845"), (2, "5892"))  # not in that list
    return names + [folders["additional"].format(k) + f"/{n}.jpg" for k, n in empty]
