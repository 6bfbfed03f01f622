"""Recall of planted pairs of one scene, by kind and strength, and unrelated images joined.

    python -m benchmarks.duplicates [--source data/sample] [--pairs 150]

Cuts a window of 70 % of the side from every image of the folder, and from one image of each patient
a second window, which is

    shift   displaced by so many percent of the window's side in a random direction
    zoom    besides enlarged or reduced by up to 15 %, brighter or darker by up to 15 %
    blur    seen through a Gaussian filter of so many percent of the side, another focus, and
            brighter or darker
    sharp   sharpened by an unsharp mask of such a width, and brighter or darker

and compressed as JPEG once more. The second windows are searched among all first ones, each kind in
a run of its own, as the stage `preprocess` does. Proposed: pairs that were compared; found: pairs
that were joined; false: joined pairs of two patients. The table `patients.csv` in the folder names
the patients; without it every image counts as another patient.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from threadpoolctl import threadpool_limits

from stages.core.params_file import load_params
from stages.photographs.decoding import ImageDecodeError, decode_and_orient, decode_image
from stages.photographs.groups import candidate_pairs, find_duplicates
from stages.photographs.listing import list_images

ROOT = Path(__file__).parents[1]
WINDOW = 0.7  # of the side: leaves room for a window that is displaced by 25 % and reduced
PIXELS = 256  # smallest side at which files are decoded
KINDS = (
    [(f"shift {shift} %", {"shift": shift}) for shift in (0, 5, 10, 15, 20, 25)]
    + [
        (f"shift {shift} %, zoom", {"shift": shift, "zoom": 0.15, "exposure": 0.15})
        for shift in (0, 5, 10, 15, 20, 25)
    ]
    + [(f"blur {blur} %", {"blur": blur, "exposure": 0.15}) for blur in (1, 2, 3, 4)]
    + [(f"sharp {width} %", {"sharp": width, "exposure": 0.15}) for width in (1, 2)]
    + [
        (f"shift 10 %, blur {blur} %", {"shift": 10, "blur": blur, "exposure": 0.15})
        for blur in (1, 2, 3)
    ]
)


def images_of_patients(source: Path) -> tuple[list[Image.Image], list[str]]:
    """The images of a folder that can be decoded, and their patients."""
    table = "patients.csv" if (source / "patients.csv").exists() else "none"
    data = load_params(ROOT / "params.yaml").data.model_copy(
        update={"source": source, "groups": table}
    )
    images, patients = [], []
    for record in list_images(data).images:
        try:
            images.append(decode_and_orient(record.file.read_bytes(), PIXELS)[0])
        except ImageDecodeError:
            continue
        patients.append(record.patient or record.path)
    return images, patients


def thumbnail(image: Image.Image, quality: int) -> np.ndarray:
    """What the stage keeps of a file with this image: uint8 (64, 64)."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return decode_image(file.getvalue(), 32, "none").thumbnail


def window(image: Image.Image, center: np.ndarray, side: float) -> Image.Image:
    """A part of an image, in fractions of its sides."""
    corners = np.concatenate([center - side / 2, center + side / 2]) * (image.size * 2)
    return image.crop(tuple(corners.round().astype(int).tolist()))


def plant(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    shift: float = 0,
    zoom: float = 0,
    blur: float = 0,
    sharp: float = 0,
    exposure: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails of two windows of one image.

    shift, blur, sharp: in percent of the side; zoom, exposure: largest change.
    """
    angle = rng.uniform(0, 2 * np.pi)
    way = shift / 100 * WINDOW * np.array([np.cos(angle), np.sin(angle)])
    side = WINDOW / rng.uniform(1 - zoom, 1 + zoom)
    lowest = np.maximum(WINDOW / 2, side / 2 - way)
    highest = np.minimum(1 - WINDOW / 2, 1 - side / 2 - way)
    center = rng.uniform(lowest, highest)
    second = window(image, center + way, side)
    if blur:
        second = second.filter(ImageFilter.GaussianBlur(blur / 100 * second.width))
    if sharp:
        second = second.filter(
            ImageFilter.UnsharpMask(sharp / 100 * second.width, percent=200, threshold=0)
        )
    second = ImageEnhance.Brightness(second).enhance(rng.uniform(1 - exposure, 1 + exposure))
    return thumbnail(window(image, center, WINDOW), 90), thumbnail(
        second, int(rng.integers(60, 90))
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--source", type=Path, default=ROOT / "data/sample", help="folder of images"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=150,
        help="planted pairs of each kind, of as many patients, at most",
    )
    options = parser.parse_args()
    similarity = load_params(ROOT / "params.yaml").data.duplicate_similarity
    images, patients = images_of_patients(options.source)
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    chosen = list({patients[row]: row for row in order}.values())[: options.pairs]
    middle = np.array([0.5, 0.5])
    every = np.stack([thumbnail(window(image, middle, WINDOW), 90) for image in images])
    owners = np.array(patients + [patients[row] for row in chosen])
    planted = {(row, len(images) + number) for number, row in enumerate(chosen)}
    print(
        f"{len(images)} images of {len(set(patients))} patients, "
        f"n = {len(planted)} planted pairs of each kind\n"
    )
    print("| kind | proposed | found | false | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        for kind, strength in KINDS:
            thumbnails, seconds = every.copy(), []
            for row in chosen:
                thumbnails[row], second = plant(
                    images[row], np.random.default_rng([0, row]), **strength
                )
                seconds.append(second)
            thumbnails = np.concatenate([thumbnails, seconds])
            hashes = [str(row) for row in range(len(thumbnails))]
            proposed = candidate_pairs(thumbnails, np.arange(len(thumbnails)), map, Path(name))
            start = time.process_time()
            pairs = find_duplicates(hashes, thumbnails, similarity, map, Path(name))
            taken = time.process_time() - start
            found = len(planted & {(pair.first, pair.second) for pair in pairs})
            false = sum(owners[pair.first] != owners[pair.second] for pair in pairs)
            compared = len(planted & set(map(tuple, proposed.tolist())))
            print(f"| {kind} | {compared} | {found} | {false} | {taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
