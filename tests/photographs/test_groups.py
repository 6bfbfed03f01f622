"""Near-duplicates are found and unrelated images aren't joined.

On generated images, on the sample, and on real photographs where there are some.
"""

import csv
import importlib.util
import os
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from stages.photographs.decoding import decode_image
from stages.photographs.groups import (
    COPY,
    NEAR,
    SCENE,
    DuplicatePair,
    assign_groups,
    candidate_pairs,
    find_duplicates,
    find_label_conflicts,
    rows_to_drop,
)
from stages.photographs.image_index import ImageRecord
from tests.helpers.image_files import encode, make_image
from tests.helpers.params import params
from tests.helpers.repository import ROOT

SCRATCH = Path(tempfile.gettempdir())
SIMILARITY = params().data.duplicate_similarity
SAMPLE = ROOT / "data/sample"


def thumbnails_of(contents: list[bytes]) -> np.ndarray:
    return np.stack([decode_image(content, 16, "none").thumbnail for content in contents])


def duplicates(contents: list[bytes]) -> list[DuplicatePair]:
    return find_duplicates(contents, thumbnails_of(contents), SIMILARITY, map, SCRATCH)


@cache
def originals() -> list[Image.Image]:
    return [make_image(seed, 200, 200) for seed in range(30)]


def brightened(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def color_cast(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * (0.9, 1.0, 0.8)).astype(np.uint8))


def blurred(image: Image.Image, width: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(width))


WHOLE, WINDOW = (0, 0, 200, 200), (10, 10, 150, 150)
# Name -> what is compared with the changed image, and the file of the changed image.
CHANGES = {
    "resized": (WHOLE, lambda image: encode(image.resize((130, 130), Image.Resampling.LANCZOS))),
    "recompressed": (WHOLE, lambda image: encode(image, quality=35)),
    "other format": (WHOLE, lambda image: encode(image, "PNG")),
    "darker": (WHOLE, lambda image: encode(brightened(image, 0.7))),
    "more contrast": (WHOLE, lambda image: encode(ImageEnhance.Contrast(image).enhance(1.3))),
    "other white balance": (WHOLE, lambda image: encode(color_cast(image))),
    "cropped on one side": (WHOLE, lambda image: encode(image.crop((0, 0, 190, 200)))),
    "cropped on all sides": (WHOLE, lambda image: encode(image.crop((8, 10, 192, 190)))),
    "rotated by 1 degree": (
        WHOLE,
        lambda image: encode(image.rotate(1, Image.Resampling.BICUBIC).crop((6, 6, 194, 194))),
    ),
    "several changes": (
        WHOLE,
        lambda image: encode(
            brightened(image.crop((0, 8, 194, 194)), 1.2).resize((110, 110)), quality=55
        ),
    ),
    "shifted by 15%": (WINDOW, lambda image: encode(image.crop((26, 10, 166, 150)))),
    "shifted by 20%": (WINDOW, lambda image: encode(image.crop((10, 38, 150, 178)))),
    "shifted by 7% twice, enlarged": (WINDOW, lambda image: encode(image.crop((22, 22, 156, 156)))),
    "defocused by 2%": (WINDOW, lambda image: encode(blurred(image.crop(WINDOW), 2.8))),
    "defocused by 3%, shifted": (
        WINDOW,
        lambda image: encode(blurred(image.crop((24, 10, 164, 150)), 4.2)),
    ),
    "sharpened": (
        WINDOW,
        lambda image: encode(image.crop(WINDOW).filter(ImageFilter.UnsharpMask(2, 200, 0))),
    ),
}


KINDS = {
    "recompressed": NEAR,
    "darker": NEAR,
    "cropped on one side": SCENE,
    "shifted by 15%": SCENE,
}


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_near_duplicates_are_found(change):
    window, changed = CHANGES[change]
    contents = [encode(image.crop(window)) for image in originals()]
    pairs = duplicates(contents + [changed(image) for image in originals()])
    assert [(pair.first, pair.second) for pair in pairs] == [(n, n + 30) for n in range(30)]
    if change in KINDS:
        assert {pair.kind for pair in pairs} == {KINDS[change]}


def test_candidates_are_sorted_pairs():
    thumbnails = thumbnails_of([encode(make_image(seed % 5)) for seed in range(10)])
    pairs = candidate_pairs(thumbnails, np.arange(10), map, SCRATCH)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert {(n, n + 5) for n in range(5)} <= set(map(tuple, pairs.tolist()))
    assert candidate_pairs(thumbnails, np.array([3]), map, SCRATCH).shape == (0, 2)
    some = candidate_pairs(thumbnails, np.array([2, 7]), map, SCRATCH)
    assert some.tolist() == [[2, 7]], "rows of the images, not of the choice"


def test_copies_are_paired_with_the_first_of_them():
    pairs = duplicates([encode(make_image(seed)) for seed in (0, 1, 0, 0)])
    assert pairs == [DuplicatePair(0, 2, COPY, 1.0), DuplicatePair(0, 3, COPY, 1.0)]


def test_groups_are_connected_components_of_duplicates_and_patients():
    pairs = [DuplicatePair(0, 3, NEAR, 0.95), DuplicatePair(3, 4, COPY, 1.0)]
    groups = assign_groups(list("fbcade"), ["", "p", "", "", "", "p"], pairs)
    assert groups == list("abcaab")
    assert assign_groups(["x"], [""], []) == ["x"]


def record(path: str, label: str, split: str = "") -> ImageRecord:
    return ImageRecord(path, Path(path), label, split=split)


def test_copies_are_dropped_and_label_conflicts_on_demand():
    records = [record(path, label) for path, label in zip("abcef", "xxyxy", strict=True)]
    records.insert(3, record("d", "x", "test"))
    hashes = ["0", "0", "0", "0", "1", "2"]
    pairs = [DuplicatePair(0, n, COPY, 1.0) for n in (1, 2, 3)]
    pairs.append(DuplicatePair(4, 5, NEAR, 0.92))
    assert find_label_conflicts(records, pairs) == {0, 1, 2, 3, 4, 5}
    assert find_label_conflicts(records, [pairs[0], pairs[2]]) == set()
    dropped = rows_to_drop(records, hashes, pairs, drop_conflicts=False)
    assert dropped == dict.fromkeys((0, 1), "copy: of d")
    dropped = rows_to_drop(records, hashes, pairs, drop_conflicts=True)
    assert dropped == dict.fromkeys(range(6), "conflict: a duplicate has another label")


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def sample_defects() -> list:
    spec = importlib.util.spec_from_file_location("draw_sample", ROOT / "data/draw_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DEFECTS


def patients_of_sample() -> dict[str, str]:
    """Path -> patient, of the images that can be decoded."""
    invalid = {d.path for d in sample_defects() if d.kind in ("empty", "text", "truncated")}
    rows = read_rows(SAMPLE / "patients.csv")
    return {row["path"]: row["patient"] for row in rows if row["path"] not in invalid}


def pairs_in_sample(paths: list[str]) -> list[tuple[str, str, str]]:
    """Pairs of paths, and their kind."""
    pairs = duplicates([(SAMPLE / path).read_bytes() for path in paths])
    return [(paths[pair.first], paths[pair.second], pair.kind) for pair in pairs]


def test_planted_duplicates_of_sample_are_found():
    patients = patients_of_sample()
    kinds = {"exact_duplicate": COPY, "near_duplicate": NEAR, "exif_rotated": NEAR}
    planted = {d.path: kinds[d.kind] for d in sample_defects() if d.kind in kinds}
    assert len(planted) >= 7
    affected = {patients[path] for path in planted}
    # All images of the affected patients, and every eighth image of the others.
    paths = [path for n, path in enumerate(patients) if patients[path] in affected or n % 8 == 0]
    pairs = pairs_in_sample(paths)
    found = {(path, kind) for first, second, kind in pairs for path in (first, second)}
    assert planted.items() <= found
    same = [(first, second) for first, second, kind in pairs if kind != SCENE]
    assert len(same) == len(planted), "other shots of a patient are no duplicates"
    assert all(patients[first] == patients[second] for first, second, _ in pairs)


@pytest.mark.slow
def test_no_duplicates_across_patients_in_whole_sample():
    patients = patients_of_sample()
    pairs = pairs_in_sample(list(patients))
    assert len(pairs) > 100
    assert all(patients[first] == patients[second] for first, second, _ in pairs)


def test_known_duplicates_of_annocerv_are_found():
    """Five pairs of cases are known to show the same images, two of them with different labels."""
    root = os.environ.get("COLPOSCOPY_ANNOCERV")
    if not root:
        pytest.skip("COLPOSCOPY_ANNOCERV names no folder with AnnoCerv and its index.csv")
    rows = read_rows(Path(root) / "index.csv")
    pairs = duplicates([(Path(root) / row["file"]).read_bytes() for row in rows])
    ends = [(rows[pair.first], rows[pair.second]) for pair in pairs]
    assert all(first["group"] == second["group"] for first, second in ends), "no unrelated pair"
    joined = {tuple(sorted((first["patient"], second["patient"]))) for first, second in ends}
    assert {pair for pair in joined if pair[0] != pair[1]} == {
        ("case016", "case026"),
        ("case021", "case028"),
        ("case055", "case087"),
        ("case098", "case100"),
        ("case001", "case023"),
    }
    cases = [re.search(r"C(\d+)Aceto", row["file"])[1] for row in rows]
    groups = assign_groups([row["file"] for row in rows], cases, pairs)
    assert len(set(groups)) == len({row["group"] for row in rows}) == 95
    records = [record(row["file"], row["label"]) for row in rows]
    conflicts = {rows[n]["group"] for n in find_label_conflicts(records, pairs)}
    assert conflicts == {"case016+026", "case021+028"}
