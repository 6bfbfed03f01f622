"""Duplicates: what must be joined is joined, what must not isn't; on drawn pictures, the sample, and real photographs."""

import csv
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.core.params import load_all
from stages.photographs.decoding import decode_image
from stages.photographs.groups import (
    COPY,
    NEAR,
    DuplicatePair,
    candidate_pairs,
    find_duplicates,
    find_label_conflicts,
    fine_similarity,
    group,
    rows_to_drop,
)
from stages.photographs.listing import ImageRecord
from tests.helpers.image_files import ROOT, encoded, picture

SIMILARITY = load_all(ROOT / "params.yaml").data.duplicate_similarity


def thumbnail(content: bytes) -> np.ndarray:
    return decode_image(content, 16, "none", usable_part=0).thumbnail


def near_links(thumbnails: list[np.ndarray]) -> list[DuplicatePair]:
    return find_duplicates([str(n) for n in range(len(thumbnails))], np.stack(thumbnails), SIMILARITY, map)


CHANGES = {
    "smaller": lambda image: encoded(image.resize((130, 130), Image.Resampling.LANCZOS)),
    "recompressed": lambda image: encoded(image, quality=35),
    "another format": lambda image: encoded(image, "PNG"),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.7)),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.3)),
    "other white balance": lambda image: encoded(Image.fromarray((np.asarray(image) * (0.9, 1.0, 0.8)).astype(np.uint8))),
    "cropped on one side": lambda image: encoded(image.crop((0, 0, 190, 200))),
    "cropped on all sides": lambda image: encoded(image.crop((8, 10, 192, 190))),
    "turned by a degree": lambda image: encoded(image.rotate(1, Image.Resampling.BICUBIC).crop((6, 6, 194, 194))),
    "all at once": lambda image: encoded(
        ImageEnhance.Brightness(image.crop((0, 8, 194, 194))).enhance(1.2).resize((110, 110)), quality=55
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_are_found_and_nothing_else(change):
    originals = [picture(seed, 200, 200) for seed in range(30)]
    thumbnails = [thumbnail(encoded(one)) for one in originals] + [thumbnail(CHANGES[change](one)) for one in originals]
    assert [(link.first, link.second, link.kind) for link in near_links(thumbnails)] == [(n, n + 30, NEAR) for n in range(30)]


def test_similarity_of_equal_flat_and_unrelated_pictures():
    a, b, flat = thumbnail(encoded(picture(0))), thumbnail(encoded(picture(1))), np.full((64, 64), 90, np.uint8)
    equal, unrelated, nothing = fine_similarity(np.stack([a, a, flat]), np.stack([a, b, flat]))
    assert equal == pytest.approx(1)
    assert abs(unrelated) < 0.5
    assert nothing == pytest.approx(0), "two pictures without detail have nothing in common"


def test_a_pair_is_judged_alike_in_any_company():
    thumbnails = np.stack([thumbnail(encoded(picture(seed))) for seed in range(12)])
    together = fine_similarity(thumbnails[:6], thumbnails[6:], 0.1)
    alone = [fine_similarity(thumbnails[n : n + 1], thumbnails[n + 6 : n + 7], 0.1)[0] for n in range(6)]
    assert together.tolist() == alone


def test_proposals_are_sorted_pairs():
    thumbnails = np.stack([thumbnail(encoded(picture(seed % 5))) for seed in range(10)])
    pairs = candidate_pairs(thumbnails)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert {(n, n + 5) for n in range(5)} <= set(map(tuple, pairs.tolist()))
    assert candidate_pairs(thumbnails[:1]).shape == (0, 2)


def test_copies_are_linked_by_content():
    thumbnails = np.stack([thumbnail(encoded(picture(seed))) for seed in (0, 1, 0, 0)])
    links = find_duplicates(["a", "b", "a", "a"], thumbnails, SIMILARITY, map)
    assert links == [DuplicatePair(0, 2, COPY, 1.0), DuplicatePair(0, 3, COPY, 1.0)]


def test_groups_are_chains_of_links_and_patients():
    links = [DuplicatePair(0, 3, NEAR, 0.95), DuplicatePair(3, 4, COPY, 1.0)]
    assert group(list("fbcade"), ["", "p", "", "", "", "p"], links) == ["a", "b", "c", "a", "a", "b"]
    assert group(["x"], [""], []) == ["x"]


def listed(path: str, label: str, split: str = "") -> ImageRecord:
    return ImageRecord(path, Path(path), label, split=split)


def test_copies_are_dropped_and_conflicts_on_demand():
    pictures = [
        listed("a", "x"),
        listed("b", "x"),
        listed("c", "y"),
        listed("d", "x", "test"),
        listed("e", "x"),
        listed("f", "y"),
    ]
    hashes = ["0", "0", "0", "0", "1", "2"]
    links = [DuplicatePair(0, n, COPY, 1.0) for n in (1, 2, 3)] + [DuplicatePair(4, 5, NEAR, 0.92)]
    assert find_label_conflicts(pictures, links) == {0, 1, 2, 3, 4, 5}
    assert find_label_conflicts(pictures, links[:1] + links[2:3]) == set()
    assert rows_to_drop(pictures, hashes, links, drop_conflicts=False) == {0: "copy: of d", 1: "copy: of d"}
    dropped = rows_to_drop(pictures, hashes, links, drop_conflicts=True)
    assert {row for row, reason in dropped.items() if reason.startswith("conflict: ")} == {0, 1, 2, 3, 4, 5}


def sample_defects() -> list:
    spec = importlib.util.spec_from_file_location("draw_sample", ROOT / "data/draw_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DEFECTS


def sample() -> tuple[list[str], list[str]]:
    with (ROOT / "data/sample/patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["path"] for row in rows], [row["patient"] for row in rows]


def sample_links(paths: list[str]) -> list[DuplicatePair]:
    contents = [(ROOT / "data/sample" / path).read_bytes() for path in paths]
    return find_duplicates(contents, np.stack([thumbnail(content) for content in contents]), SIMILARITY, map)


def test_duplicates_planted_in_the_sample():
    paths, patients = sample()
    planted = [one for one in sample_defects() if one.kind in ("exact_duplicate", "near_duplicate", "exif_rotated")]
    assert len(planted) >= 7
    patient_of = dict(zip(paths, patients, strict=True))
    theirs = {patient_of[one.path] for one in planted}
    # Everything of the patients concerned, and every eighth picture of the others.
    some = [path for n, path in enumerate(paths) if patient_of[path] in theirs or n % 8 == 0]
    some = [path for path in some if path not in {one.path for one in sample_defects() if one.kind == "truncated"}]
    links = sample_links(some)
    for one in planted:
        wanted = COPY if one.kind == "exact_duplicate" else NEAR
        partners = [link for link in links if some.index(one.path) in (link.first, link.second) and link.kind == wanted]
        assert partners, one
    assert all(patient_of[some[link.first]] == patient_of[some[link.second]] for link in links)


@pytest.mark.slow
def test_whole_sample_joins_no_two_patients():
    paths, patients = sample()
    bad = {one.path for one in sample_defects() if one.kind in ("empty", "text", "truncated")}
    kept = [n for n, path in enumerate(paths) if path not in bad]
    links = sample_links([paths[n] for n in kept])
    assert len(links) > 100
    assert all(patients[kept[link.first]] == patients[kept[link.second]] for link in links)


def test_annocerv():
    """Five pairs of cases are known to be the same photographs, two of them under different labels."""
    root = os.environ.get("COLPOSCOPY_ANNOCERV")
    if not root:
        pytest.skip("COLPOSCOPY_ANNOCERV names no folder with the AnnoCerv photographs and their index.csv")
    with (Path(root) / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    contents = [(Path(root) / row["file"]).read_bytes() for row in rows]
    links = find_duplicates(contents, np.stack([thumbnail(content) for content in contents]), SIMILARITY, map)
    assert all(rows[link.first]["group"] == rows[link.second]["group"] for link in links), "no unrelated pair"
    joined = {tuple(sorted((rows[link.first]["patient"], rows[link.second]["patient"]))) for link in links}
    pairs = {
        ("case016", "case026"),
        ("case021", "case028"),
        ("case055", "case087"),
        ("case098", "case100"),
        ("case001", "case023"),
    }
    assert pairs <= joined
    assert {pair for pair in joined if pair[0] != pair[1]} == pairs
    cases = [re.search(r"C(\d+)Aceto", row["file"])[1] for row in rows]
    groups = group([row["file"] for row in rows], cases, links)
    assert len(set(groups)) == len({row["group"] for row in rows}) == 95
    labels = [ImageRecord(row["file"], Path(row["file"]), row["label"]) for row in rows]
    conflicts = {rows[n]["group"] for n in find_label_conflicts(labels, links)}
    assert conflicts == {"case016+026", "case021+028"}
