"""Which images belong together: copies, re-encoded or slightly cropped copies, near-identical shots, one patient's.

Every round, centered cervix resembles every other one: at 32 x 32 gray pixels the correlation of two patients reaches 0.85
(AnnoCerv) or 0.96 (the synthetic sample), and linking above such a value chains strangers together. So two images are
compared in two steps: coarse structure and the amplitude spectrum, which is the same wherever a crop begins, propose a few
neighbors of each image; the pair is then aligned by an affine map, and the fine detail alone (vessels, glints, folds; the
shape of the cervix is subtracted) must agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from stages.photographs.alignment import bandpass, fine_similarity
from stages.photographs.listing import ImageRecord
from stages.photographs.nearest import downscale, nearest_pairs, unit_vectors
from stages.photographs.parallel import ParallelMap

COARSE = 24  # pixels, side of the images that propose neighbors
NEIGHBORS = 2  # proposals per image by coarse structure; a chain of duplicates is joined by one correct proposal for each
CANDIDATE_SIMILARITY = (
    0.6  # coarse correlation from which a neighbor is proposed: a crop of 6 % a side keeps 0.75
)
SPECTRUM = 32  # pixels, side of the images whose spectra propose neighbors
RADIUS = 10  # highest frequency of the spectra that are compared, in cycles per side
SPECTRUM_NEIGHBORS = 3  # proposals per image by spectra
SPECTRUM_SIMILARITY = 0.4  # correlation of spectra from which a neighbor is proposed: a displacement by 25 % keeps 0.5
BATCH = 32  # pairs that are compared at once
COPY, NEAR = "copy", "near"


@dataclass(frozen=True)
class DuplicatePair:
    """Two rows that show the same. kind: copy (equal bytes) or near; similarity: agreement of fine detail, 1 for copies."""

    first: int
    second: int
    kind: str
    similarity: float


def find_duplicates(
    hashes: Sequence[str],
    thumbnails: np.ndarray,
    similarity: float,
    map_: ParallelMap,
    scratch: Path,
) -> list[DuplicatePair]:
    """All pairs, in order of rows. Copies are paired with the first of them; only first ones are compared with others.

    Args:
        hashes: of the files' content.
        thumbnails: uint8 (N, 64, 64).
        similarity: of fine detail, from which images are near-duplicates.
        map_: runs the comparison.
        scratch: folder for a temporary file, which all processes see.
    """
    firsts: dict[str, int] = {}
    pairs = [
        DuplicatePair(firsts[h], i, COPY, 1.0)
        for i, h in enumerate(hashes)
        if firsts.setdefault(h, i) != i
    ]
    rows = np.array(sorted(firsts.values()))
    candidates = candidate_pairs(thumbnails, rows, map_, scratch)
    batches = [candidates[start : start + BATCH] for start in range(0, len(candidates), BATCH)]
    compare = partial(_similarity, least=similarity)
    found = map_(compare, ((thumbnails[batch[:, 0]], thumbnails[batch[:, 1]]) for batch in batches))
    # On a terminal only: a bar in a log is noise.
    progress = {"total": len(batches), "unit": "pair", "unit_scale": BATCH, "disable": None}
    for batch, values in tqdm(zip(batches, found, strict=True), "comparing", **progress):
        near = zip(batch.tolist(), values.tolist(), strict=True)
        pairs += [DuplicatePair(a, b, NEAR, value) for (a, b), value in near if value >= similarity]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _similarity(pairs: tuple[np.ndarray, np.ndarray], least: float) -> np.ndarray:
    return fine_similarity(*pairs, least)


def candidate_pairs(
    thumbnails: np.ndarray, rows: np.ndarray, map_: ParallelMap, scratch: Path
) -> np.ndarray:
    """Each image with its nearest in coarse structure and those in amplitude spectrum, of the images of some rows.

    Returns:
        Pairs of those rows, int (M, 2), sorted, the smaller row first.
    """
    with unit_vectors(thumbnails, rows, _coarse_structure, scratch) as vectors:
        alike = nearest_pairs(vectors, len(rows), NEIGHBORS, CANDIDATE_SIMILARITY, map_)
    with unit_vectors(thumbnails, rows, _amplitude_spectrum, scratch) as vectors:
        displaced = nearest_pairs(vectors, len(rows), SPECTRUM_NEIGHBORS, SPECTRUM_SIMILARITY, map_)
    return rows[np.unique(np.concatenate([alike, displaced]), axis=0)]


def _coarse_structure(thumbnails: np.ndarray) -> np.ndarray:
    """(B, 64, 64) -> (B, COARSE, COARSE)."""
    return bandpass(downscale(thumbnails, COARSE), 1, 4)


def _amplitude_spectrum(thumbnails: np.ndarray) -> np.ndarray:
    """(B, 64, 64) -> (B, D): roots of the amplitudes up to RADIUS, relative to the others of their frequency.

    Amplitudes are the same wherever a crop begins, and what focus does to a frequency cancels.
    """
    window = np.sqrt(np.hanning(SPECTRUM + 2)[1:-1]).astype(np.float32)
    amplitudes = abs(
        np.fft.rfft2(bandpass(downscale(thumbnails, SPECTRUM), 1, 4) * np.outer(window, window))
    )
    rows, columns = np.fft.fftfreq(SPECTRUM, 1 / SPECTRUM)[:, None], np.arange(SPECTRUM // 2 + 1)
    rings = np.round(np.hypot(rows, columns)).astype(int)
    vectors = []
    for ring in range(1, RADIUS + 1):
        part = amplitudes[:, (rings == ring) & ((columns > 0) | (rows > 0))]
        part = np.sqrt(part / (np.sqrt((part**2).mean(axis=1, keepdims=True)) + 1e-9))
        vectors.append(part - part.mean(axis=1, keepdims=True))
    return np.concatenate(vectors, axis=1)


def assign_groups(
    paths: Sequence[str], patients: Sequence[str], pairs: Sequence[DuplicatePair]
) -> list[str]:
    """For each row the smallest path of its group: what pairs or one patient ("" = unknown) join, directly or in a chain."""
    first_of: dict[str, int] = {}
    edges = [(pair.first, pair.second) for pair in pairs]
    edges += [
        (first_of.setdefault(patient, row), row) for row, patient in enumerate(patients) if patient
    ]
    ends = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array(
        (np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(len(paths), len(paths))
    )
    numbers = connected_components(graph, directed=False)[1]
    names: dict[int, str] = {}
    for path, number in sorted(zip(paths, numbers.tolist(), strict=True)):
        names.setdefault(number, path)
    return [names[number] for number in numbers.tolist()]


def find_label_conflicts(
    records: Sequence[ImageRecord], pairs: Sequence[DuplicatePair]
) -> set[int]:
    """Rows with a copy of another label, or that are near-duplicates of such, or of an image with another label."""
    first = {
        pair.second: pair.first for pair in pairs if pair.kind == COPY
    }  # copies count as the first of them
    labels: dict[int, set[str]] = {}
    for row, record in enumerate(records):
        labels.setdefault(first.get(row, row), set()).add(record.label)
    conflicts = {row for row, names in labels.items() if len(names) > 1}
    for pair in pairs:
        if pair.kind == NEAR and len(labels[pair.first] | labels[pair.second]) > 1:
            conflicts |= {pair.first, pair.second}
    return {row for row in range(len(records)) if first.get(row, row) in conflicts}


def rows_to_drop(
    records: Sequence[ImageRecord],
    hashes: Sequence[str],
    pairs: Sequence[DuplicatePair],
    *,
    drop_conflicts: bool,
) -> dict[int, str]:
    """Rows to exclude, with the reason: all but one of equal copies with one label, and on demand label conflicts.

    Of copies the one with a given split stays, else the first by path.
    """
    dropped = {}
    stays: dict[tuple[str, str], int] = {}
    preference = {"test": 0, "val": 1}
    for row in sorted(
        range(len(records)), key=lambda row: (preference.get(records[row].split, 2), row)
    ):
        kept = stays.setdefault((hashes[row], records[row].label), row)
        if kept != row:
            dropped[row] = f"copy: of {records[kept].path}"
    if drop_conflicts:
        for row in find_label_conflicts(records, pairs):
            dropped[row] = "conflict: a duplicate has another label"
    return dropped
