"""Small folders of photographs, and what preprocess, or its decoding alone, makes of them."""

import io
from pathlib import Path

import yaml

from stages.photographs.listing import list_images
from stages.photographs.reading import DecodedImages, decode_all
from tests.helpers.image_files import data_params, encode, make_image, write_files
from tests.helpers.params import raw_params

DATASET = ("data/processed/images.npy", "data/processed/manifest.csv")
OUTPUTS = (*DATASET, "data/processed/rejected.csv", "metrics/data.json")
SHEETS = ("plots/rejected.png", "plots/duplicates.png", "plots/crops.png")


def set_params(project: Path, workers: int = 1, cluster: str = "none", **changes) -> None:
    """The project's parameters at 16 pixels, for the images in raw/ and without tables."""
    params = raw_params()
    small = {"source": "raw", "image_size": 16, "label_fixes": "none", "groups": "none"}
    params["data"] |= small | changes
    params["runtime"] |= {"workers": workers, "cluster": cluster, "tracking": False}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def make_raw_images(folder: Path) -> None:
    """48 images of two classes, near-duplicates of the first six, and some invalid files."""
    photographs = [make_image(n, 80, 64) for n in range(48)]
    files = {f"{'ab'[n % 2]}/{n:02}.jpg": encode(image) for n, image in enumerate(photographs)}
    for n, image in enumerate(photographs[:6]):
        files[f"{'ab'[n % 2]}/near{n}.jpg"] = encode(image.resize((60, 48)), quality=70)
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


def write_image_folder(folder: Path) -> Path:
    """20 images of two classes, an empty file and a truncated one."""
    files = {f"{'ab'[n % 2]}/{n}.jpg": encode(make_image(n, 60 + n, 50)) for n in range(20)}
    return write_files(folder, files | {"a/99.jpg": b"", "b/99.jpg": encode(make_image(0))[:300]})


def decode_folder(source: Path, cache: Path) -> tuple[DecodedImages, bytes]:
    """The images of a folder at 16 x 16 pixels, and their pixels."""
    spool, data = io.BytesIO(), data_params(source, image_size=16)
    return decode_all(list_images(data).images, data, spool, map, cache), spool.getvalue()
