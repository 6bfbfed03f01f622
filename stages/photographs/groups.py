"""Which images belong together: copies, altered copies, shots of the same scene, patients.

Every round, centered cervix resembles every other one: at 32 x 32 gray pixels the correlation of
two patients reaches 0.85 (AnnoCerv) or 0.96 (the synthetic sample), and linking above such a value
chains strangers together. So there are two steps. Coarse structure, and the amplitude spectrum,
which is the same wherever a crop begins, propose a few neighbors of each image. Each pair is then
aligned by an affine map, and its fine detail (vessels, glints, folds) must agree.

Such a pair shows the same scene. It is called a near-duplicate where both images are evidently one
photograph; a crop can't be told from another shot, which also differs in framing and light.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from stages.photographs.alignment import bandpass, fine_similarity, unaligned_similarity
from stages.photographs.image_index import ImageRecord
from stages.photographs.nearest import downscale, nearest_pairs, unit_vectors
from stages.photographs.parallel import ParallelMap

COARSE = 24  # pixels, side of the images whose coarse structure proposes neighbors
NEIGHBORS = 2  # proposals per image; one correct proposal for each joins a chain of duplicates
CANDIDATE_SIMILARITY = 0.6  # correlation from which one is proposed; a crop by 6% keeps 0.75
SPECTRUM = 32  # pixels, side of the images whose spectra propose neighbors
RADIUS = 10  # highest frequency of the spectra that are compared, in cycles per side
SPECTRUM_NEIGHBORS = 3  # proposals per image
SPECTRUM_SIMILARITY = 0.4  # correlation from which one is proposed; displaced by 25% it is 0.5
BATCH = 32  # pairs that are compared at once
SAME_PHOTOGRAPH = 0.998  # correlation of coarse structure from which a pair is one photograph
COPY, NEAR, SCENE = "copy", "near", "scene"


@dataclass(frozen=True)
class DuplicatePair:
    """Two rows that show the same, the smaller one first.

    Attributes:
        first: row.
        second: row.
        kind: copy (equal bytes), near (one photograph, resized or encoded again) or scene (another
            shot or a crop).
        similarity: agreement of fine detail, 1 for copies.
    """

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
    """All pairs, in order of rows.

    Copies are paired with the first of them, which alone is compared with other images.

    Args:
        hashes: of the files' content.
        thumbnails: uint8 (N, 64, 64).
        similarity: of fine detail, from which images show the same scene.
        map_: runs the comparison.
        scratch: folder for a temporary file, which all processes see.
    """
    pairs = []
    first_rows: dict[str, int] = {}
    for row, digest in enumerate(hashes):
        first = first_rows.setdefault(digest, row)
        if first != row:
            pairs.append(DuplicatePair(first, row, COPY, 1.0))
    candidates = candidate_pairs(thumbnails, np.array(list(first_rows.values())), map_, scratch)
    batches = [candidates[start : start + BATCH] for start in range(0, len(candidates), BATCH)]
    similarities = map_(
        partial(_similarity, least=similarity),
        ((thumbnails[batch[:, 0]], thumbnails[batch[:, 1]]) for batch in batches),
    )
    compared = zip(batches, similarities, strict=True)
    # disable=None shows the bar on a terminal only.
    for batch, values in tqdm(
        compared, "comparing", len(batches), unit="pair", unit_scale=BATCH, disable=None
    ):
        for (first, second), (fine, coarse) in zip(batch.tolist(), values.tolist(), strict=True):
            if fine >= similarity:
                kind = NEAR if coarse >= SAME_PHOTOGRAPH else SCENE
                pairs.append(DuplicatePair(first, second, kind, fine))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _similarity(pairs: tuple[np.ndarray, np.ndarray], least: float) -> np.ndarray:
    """(B, 2): of fine detail, of coarse structure."""
    return np.stack([fine_similarity(*pairs, least), unaligned_similarity(*pairs)], axis=1)


def candidate_pairs(
    thumbnails: np.ndarray, rows: np.ndarray, map_: ParallelMap, scratch: Path
) -> np.ndarray:
    """Pairs of neighbors by coarse structure or amplitude spectrum, among some rows.

    Returns:
        int (M, 2), sorted, the smaller row first.
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
    """(B, 64, 64) -> (B, D): roots of the amplitudes up to RADIUS.

    Relative to the others of the same frequency, so that the effect of focus cancels.
    """
    window = np.sqrt(np.hanning(SPECTRUM + 2)[1:-1]).astype(np.float32)
    bands = bandpass(downscale(thumbnails, SPECTRUM), 1, 4) * np.outer(window, window)
    spectra = abs(np.fft.rfft2(bands))
    rows, columns = np.fft.fftfreq(SPECTRUM, 1 / SPECTRUM)[:, None], np.arange(SPECTRUM // 2 + 1)
    frequencies = np.round(np.hypot(rows, columns)).astype(int)
    vectors = []
    for frequency in range(1, RADIUS + 1):
        ring = spectra[:, (frequencies == frequency) & ((columns > 0) | (rows > 0))]
        ring = np.sqrt(ring / (np.sqrt((ring**2).mean(axis=1, keepdims=True)) + 1e-9))
        vectors.append(ring - ring.mean(axis=1, keepdims=True))
    return np.concatenate(vectors, axis=1)


def assign_groups(
    paths: Sequence[str], patients: Sequence[str], pairs: Sequence[DuplicatePair]
) -> list[str]:
    """The group of each row: what pairs or one patient join, directly or in a chain.

    Args:
        paths: (N,).
        patients: (N,), "" where unknown.
        pairs: of rows.

    Returns:
        The smallest path of each row's group.
    """
    edges = [(pair.first, pair.second) for pair in pairs]
    first_of: dict[str, int] = {}
    for row, patient in enumerate(patients):
        if patient:
            edges.append((first_of.setdefault(patient, row), row))
    ends = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), tuple(ends)), shape=(len(paths), len(paths)))
    numbers = connected_components(graph, directed=False)[1].tolist()
    names: dict[int, str] = {}
    for path, number in sorted(zip(paths, numbers, strict=True)):
        names.setdefault(number, path)
    return [names[number] for number in numbers]


def find_label_conflicts(
    records: Sequence[ImageRecord], pairs: Sequence[DuplicatePair]
) -> set[int]:
    """Rows that have another label than a copy or another image of their scene.

    What holds for one of several copies holds for all.
    """
    first_copy = {pair.second: pair.first for pair in pairs if pair.kind == COPY}
    labels: dict[int, set[str]] = {}
    for row, record in enumerate(records):
        labels.setdefault(first_copy.get(row, row), set()).add(record.label)
    conflicts = {row for row, names in labels.items() if len(names) > 1}
    for pair in pairs:
        if pair.kind != COPY and len(labels[pair.first] | labels[pair.second]) > 1:
            conflicts |= {pair.first, pair.second}
    return {row for row in range(len(records)) if first_copy.get(row, row) in conflicts}


def rows_to_drop(
    records: Sequence[ImageRecord],
    hashes: Sequence[str],
    pairs: Sequence[DuplicatePair],
    *,
    drop_conflicts: bool,
) -> dict[int, str]:
    """Rows to exclude, with the reason.

    Of copies with one label one is kept: one with a given split, or else the first by path. Label
    conflicts are excluded on demand.
    """
    dropped = {}
    kept: dict[tuple[str, str], int] = {}
    preference = {"test": 0, "val": 1}
    for row in sorted(
        range(len(records)), key=lambda row: (preference.get(records[row].split, 2), row)
    ):
        kept_row = kept.setdefault((hashes[row], records[row].label), row)
        if kept_row != row:
            dropped[row] = f"copy: of {records[kept_row].path}"
    if drop_conflicts:
        for row in find_label_conflicts(records, pairs):
            dropped[row] = "conflict: a duplicate has another label"
    return dropped
