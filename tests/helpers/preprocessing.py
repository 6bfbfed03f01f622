"""A small folder of photographs, and the files that preprocess makes of it."""

from pathlib import Path

import yaml

from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.repository import ROOT

OUTPUTS = (
    "data/processed/images.npy",
    "data/processed/manifest.csv",
    "data/processed/rejected.csv",
    "metrics/data.json",
)
SHEETS = ("plots/rejected.png", "plots/duplicates.png", "plots/crops.png")


def set_params(project: Path, workers: int = 1, cluster: str = "none", **changes) -> None:
    """The project's parameters at 16 pixels, for the images in raw/, without the settings that belong to the sample."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    small = {"source": "raw", "image_size": 16, "label_fixes": "none", "groups": "none"}
    params["data"] |= small | changes
    params["runtime"] |= {"workers": workers, "cluster": cluster, "tracking": False}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def make_raw_images(folder: Path) -> None:
    """48 images of two classes, each of the first six also as a near-duplicate, and some invalid files."""
    files = {f"{'ab'[n % 2]}/{n:02}.jpg": encode(make_image(n, 80, 64)) for n in range(48)}
    files |= {
        f"{'ab'[n % 2]}/near{n}.jpg": encode(make_image(n, 80, 64).resize((60, 48)), quality=70)
        for n in range(6)
    }
    files |= {
        "a/copy.jpg": files["a/02.jpg"],
        "b/conflict.jpg": files["a/04.jpg"],
        "a/empty.jpg": b"",
        "b/truncated.jpg": files["b/01.jpg"][:900],
    }
    write_files(folder, files | {"notes.txt": b"x"})


def read_outputs(names: tuple[str, ...] = OUTPUTS + SHEETS) -> dict[str, bytes]:
    """What the stage wrote."""
    return {name: Path(name).read_bytes() for name in names}
