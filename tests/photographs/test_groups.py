"""Near-duplicates are found and unrelated images aren't joined; on generated images, the sample, and real photographs."""

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

from stages.core.params_file import load_params
from stages.photographs.decoding import decode_image
from stages.photographs.groups import (
    COPY,
    NEAR,
    DuplicatePair,
    assign_groups,
    candidate_pairs,
    find_duplicates,
    find_label_conflicts,
    rows_to_drop,
)
from stages.photographs.listing import ImageRecord
from tests.helpers.image_files import encode, make_image
from tests.helpers.repository import ROOT

SCRATCH = Path(tempfile.gettempdir())
SIMILARITY = load_params(ROOT / "params.yaml").data.duplicate_similarity


def thumbnail(content: bytes) -> np.ndarray:
    return decode_image(content, 16, "none").thumbnail


@cache
def originals() -> list[Image.Image]:
    return [make_image(seed, 200, 200) for seed in range(30)]


CHANGES = {
    "resized": lambda image: encode(image.resize((130, 130), Image.Resampling.LANCZOS)),
    "recompressed": lambda image: encode(image, quality=35),
    "other format": lambda image: encode(image, "PNG"),
    "darker": lambda image: encode(ImageEnhance.Brightness(image).enhance(0.7)),
    "more contrast": lambda image: encode(ImageEnhance.Contrast(image).enhance(1.3)),
    "other white balance": lambda image: encode(
        Image.fromarray((np.asarray(image) * (0.9, 1.0, 0.8)).astype(np.uint8))
    ),
    "cropped on one side": lambda image: encode(image.crop((0, 0, 190, 200))),
    "cropped on all sides": lambda image: encode(image.crop((8, 10, 192, 190))),
    "rotated by 1 degree": lambda image: encode(
        image.rotate(1, Image.Resampling.BICUBIC).crop((6, 6, 194, 194))
    ),
    "several changes": lambda image: encode(
        ImageEnhance.Brightness(image.crop((0, 8, 194, 194))).enhance(1.2).resize((110, 110)),
        quality=55,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_near_duplicates_are_found(change):
    contents = [encode(image) for image in originals()] + [
        CHANGES[change](image) for image in originals()
    ]
    thumbnails = np.stack([thumbnail(content) for content in contents])
    pairs = find_duplicates([str(n) for n in range(60)], thumbnails, SIMILARITY, map, SCRATCH)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        (n, n + 30, NEAR) for n in range(30)
    ]


OTHER_VIEWS = {
    "shifted by 15 %": lambda image: image.crop((26, 10, 166, 150)),
    "shifted by 20 %": lambda image: image.crop((10, 38, 150, 178)),
    "shifted by 7 % along both sides, enlarged": lambda image: image.crop((22, 22, 156, 156)),
    "defocused by 2 %": lambda image: image.crop((10, 10, 150, 150)).filter(
        ImageFilter.GaussianBlur(0.02 * 140)
    ),
    "defocused by 3 %, shifted": lambda image: image.crop((24, 10, 164, 150)).filter(
        ImageFilter.GaussianBlur(0.03 * 140)
    ),
    "sharpened": lambda image: image.crop((10, 10, 150, 150)).filter(
        ImageFilter.UnsharpMask(2, 200, 0)
    ),
}


@pytest.mark.parametrize("view", OTHER_VIEWS)
def test_exactly_the_pairs_with_another_crop_or_focus_are_found(view):
    windows = [image.crop((10, 10, 150, 150)) for image in originals()]
    contents = [encode(image) for image in windows] + [
        encode(OTHER_VIEWS[view](image), quality=75) for image in originals()
    ]
    thumbnails = np.stack([thumbnail(content) for content in contents])
    pairs = find_duplicates([str(n) for n in range(60)], thumbnails, SIMILARITY, map, SCRATCH)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        (n, n + 30, NEAR) for n in range(30)
    ]


def test_candidates_are_sorted_pairs():
    thumbnails = np.stack([thumbnail(encode(make_image(seed % 5))) for seed in range(10)])
    pairs = candidate_pairs(thumbnails, np.arange(10), map, SCRATCH)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert {(n, n + 5) for n in range(5)} <= set(map(tuple, pairs.tolist()))
    assert candidate_pairs(thumbnails, np.array([3]), map, SCRATCH).shape == (0, 2)
    assert candidate_pairs(thumbnails, np.array([2, 7]), map, SCRATCH).tolist() == [[2, 7]], (
        "rows of the images, not of the choice"
    )


def test_copies_are_paired_by_hash():
    thumbnails = np.stack([thumbnail(encode(make_image(seed))) for seed in (0, 1, 0, 0)])
    pairs = find_duplicates(["a", "b", "a", "a"], thumbnails, SIMILARITY, map, SCRATCH)
    assert pairs == [DuplicatePair(0, 2, COPY, 1.0), DuplicatePair(0, 3, COPY, 1.0)]


def test_groups_are_connected_components_of_duplicates_and_patients():
    pairs = [DuplicatePair(0, 3, NEAR, 0.95), DuplicatePair(3, 4, COPY, 1.0)]
    assert assign_groups(list("fbcade"), ["", "p", "", "", "", "p"], pairs) == [
        "a",
        "b",
        "c",
        "a",
        "a",
        "b",
    ]
    assert assign_groups(["x"], [""], []) == ["x"]


def record(path: str, label: str, split: str = "") -> ImageRecord:
    return ImageRecord(path, Path(path), label, split=split)


RECORDS = [
    record("a", "x"),
    record("b", "x"),
    record("c", "y"),
    record("d", "x", "test"),
    record("e", "x"),
    record("f", "y"),
]
PAIRS = [DuplicatePair(0, n, COPY, 1.0) for n in (1, 2, 3)] + [DuplicatePair(4, 5, NEAR, 0.92)]


def test_label_conflicts_of_copies_and_near_duplicates():
    assert find_label_conflicts(RECORDS, PAIRS) == {0, 1, 2, 3, 4, 5}
    assert find_label_conflicts(RECORDS, PAIRS[:1] + PAIRS[2:3]) == set()


def test_copies_are_dropped_and_conflicts_on_demand():
    hashes = ["0", "0", "0", "0", "1", "2"]
    assert rows_to_drop(RECORDS, hashes, PAIRS, drop_conflicts=False) == {
        0: "copy: of d",
        1: "copy: of d",
    }
    dropped = rows_to_drop(RECORDS, hashes, PAIRS, drop_conflicts=True)
    assert {row for row, reason in dropped.items() if reason.startswith("conflict: ")} == {
        0,
        1,
        2,
        3,
        4,
        5,
    }


def sample_defects() -> list:
    spec = importlib.util.spec_from_file_location("draw_sample", ROOT / "data/draw_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DEFECTS


def sample_patients() -> dict[str, str]:
    """path -> patient, in the order of the table."""
    with (ROOT / "data/sample/patients.csv").open(newline="") as file:
        return {row["path"]: row["patient"] for row in csv.DictReader(file)}


def duplicates_in_sample(paths: list[str]) -> list[DuplicatePair]:
    contents = [(ROOT / "data/sample" / path).read_bytes() for path in paths]
    return find_duplicates(
        contents, np.stack([thumbnail(content) for content in contents]), SIMILARITY, map, SCRATCH
    )


def test_planted_duplicates_of_sample_are_found():
    patients = sample_patients()
    planted = [
        d
        for d in sample_defects()
        if d.kind in ("exact_duplicate", "near_duplicate", "exif_rotated")
    ]
    assert len(planted) >= 7
    affected = {patients[defect.path] for defect in planted}
    truncated = {defect.path for defect in sample_defects() if defect.kind == "truncated"}
    # All images of the affected patients, and every eighth image of the others.
    paths = [path for n, path in enumerate(patients) if patients[path] in affected or n % 8 == 0]
    paths = [path for path in paths if path not in truncated]
    pairs = duplicates_in_sample(paths)
    for defect in planted:
        kind = COPY if defect.kind == "exact_duplicate" else NEAR
        assert [
            p for p in pairs if paths.index(defect.path) in (p.first, p.second) and p.kind == kind
        ], defect
    assert all(patients[paths[pair.first]] == patients[paths[pair.second]] for pair in pairs)


@pytest.mark.slow
def test_no_duplicates_across_patients_in_whole_sample():
    patients = sample_patients()
    undecodable = {
        defect.path for defect in sample_defects() if defect.kind in ("empty", "text", "truncated")
    }
    paths = [path for path in patients if path not in undecodable]
    pairs = duplicates_in_sample(paths)
    assert len(pairs) > 100
    assert all(patients[paths[pair.first]] == patients[paths[pair.second]] for pair in pairs)


def test_known_duplicates_of_annocerv_are_found():
    """Five pairs of cases are known to show the same photographs, two of them under different labels."""
    root = os.environ.get("COLPOSCOPY_ANNOCERV")
    if not root:
        pytest.skip(
            "COLPOSCOPY_ANNOCERV names no folder with the AnnoCerv photographs and their index.csv"
        )
    with (Path(root) / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    contents = [(Path(root) / row["file"]).read_bytes() for row in rows]
    pairs = find_duplicates(
        contents, np.stack([thumbnail(content) for content in contents]), SIMILARITY, map, SCRATCH
    )
    assert all(rows[pair.first]["group"] == rows[pair.second]["group"] for pair in pairs), (
        "no unrelated pair"
    )
    joined = {
        tuple(sorted((rows[pair.first]["patient"], rows[pair.second]["patient"]))) for pair in pairs
    }
    known = {
        ("case016", "case026"),
        ("case021", "case028"),
        ("case055", "case087"),
        ("case098", "case100"),
        ("case001", "case023"),
    }
    assert known <= joined
    assert {pair for pair in joined if pair[0] != pair[1]} == known
    cases = [re.search(r"C(\d+)Aceto", row["file"])[1] for row in rows]
    groups = assign_groups([row["file"] for row in rows], cases, pairs)
    assert len(set(groups)) == len({row["group"] for row in rows}) == 95
    records = [record(row["file"], row["label"]) for row in rows]
    conflicts = {rows[n]["group"] for n in find_label_conflicts(records, pairs)}
    assert conflicts == {"case016+026", "case021+028"}
