"""What was found, left out, joined and split, in numbers: the content of metrics/data.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.core.dataset import SPLITS, natural_sort_key
from stages.core.errors import InputError
from stages.photographs.groups import COPY, NEAR, DuplicatePair, find_label_conflicts
from stages.photographs.listing import ImageIndex, ImageRecord
from stages.photographs.reading import DecodedImages
from stages.photographs.splits import TEST, VAL, nearest_in_train

LEFT_OUT = ("copy", "conflict", "leak", "excluded")  # kinds of reasons that are no fault of the file
ALIKE = 0.93  # correlation at 32 x 32 grey pixels from which the leak check calls two pictures alike


class TooManyRejectedError(InputError):
    """More files are faulty than `data.max_rejected` allows."""


def kind(reason: str) -> str:
    """The part of a reason before its detail."""
    return reason.partition(":")[0]


def check_invalid_fraction(rejected: Mapping[str, str], sound: int, most: float) -> None:
    """Raise TooManyRejectedError, with a summary, when the share of faulty files is above `most`.

    sound: photographs that were decoded.
    """
    faulty = {path: reason for path, reason in rejected.items() if kind(reason) not in LEFT_OUT}
    share = len(faulty) / max(1, len(faulty) + sound)
    if share > most:
        counts = Counter(kind(reason) for reason in faulty.values()).most_common()
        summary = ", ".join(f"{count} {name}" for name, count in counts)
        path, reason = min(faulty.items())
        raise TooManyRejectedError(
            f"data.max_rejected: expected at most {most:.1%} faulty files, got {share:.1%} ({len(faulty)} of "
            f"{len(faulty) + sound}): {summary}; the first is {path} ({reason}), all are in data/processed/rejected.csv"
        )


def check_no_class_lost(listed: Sequence[ImageRecord], kept: Sequence[ImageRecord]) -> None:
    """Raise TooManyRejectedError when a class has lost its last photograph: the model must not quietly know fewer classes."""
    lost = {one.label for one in listed} - {one.label for one in kept}
    for label in sorted(lost, key=natural_sort_key):
        raise TooManyRejectedError(
            f"class {label}: expected photographs that can be used, got none: data/processed/rejected.csv says why"
        )


def summarize(
    listing: ImageIndex,
    decoded: DecodedImages,
    links: Sequence[DuplicatePair],
    groups: Sequence[str],
    splits: Mapping[int, str],
    rejected: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Nested counts; shares in 0..1. splits: row of `decoded` -> split, for the rows that are stored."""
    rows = list(splits)
    labels = [decoded.listed[row].label for row in rows]
    classes = sorted(set(labels), key=natural_sort_key)
    faulty = sum(kind(reason) not in LEFT_OUT for reason in rejected.values())
    files = len(decoded.listed) + len(listing.rejected) + len(decoded.rejected)
    sizes = np.array([(decoded.facts[row].width, decoded.facts[row].height) for row in rows])
    group_sizes = Counter(groups[row] for row in rows)
    near = [link for link in links if link.kind == NEAR]
    return {
        "synthetic": listing.synthetic,
        "files": files,
        "images": len(rows),
        "classes": {name: labels.count(name) for name in classes},
        "rejected": {
            "total": len(rejected),
            "faulty": faulty,
            "faulty_share": faulty / files,
            "reasons": dict(Counter(kind(reason) for reason in rejected.values())),
        },
        "other_files": listing.other_files,
        "excluded": listing.excluded,
        "label_fixes": listing.label_fixes,
        "official_test": {"found": listing.official_test, "used": sum(decoded.listed[row].split == TEST for row in rows)},
        "duplicates": {
            "copies": sum(link.kind == COPY for link in links),
            "near": len({row for link in near for row in (link.first, link.second)}),
            "near_links": len(near),
            "conflicting_labels": len(find_label_conflicts(decoded.listed, links)),
        },
        "groups": {
            "total": len(group_sizes),
            "largest": max(group_sizes.values()),
            "of_several": sum(size > 1 for size in group_sizes.values()),
            "images_with_known_patient": sum(bool(decoded.listed[row].patient) for row in rows),
        },
        "splits": {name: _split(decoded, groups, splits, classes, name) for name in SPLITS},
        "crops": dict(Counter(decoded.facts[row].region.kind for row in rows)),
        "modes": dict(Counter(decoded.facts[row].mode for row in rows)),
        "stain_guess": dict(Counter(decoded.facts[row].stain for row in rows)),
        "shorter_side": {
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes.min(1))),
            "largest": int(sizes.min(1).max()),
        },
        "nearest_in_train": _leak_check(decoded.thumbnails[rows], list(splits.values()), seed),
    }


def describe(metrics: Mapping[str, Any]) -> str:
    """What `summarize` found, in a few lines for whoever started the stage."""

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    rejected, leak, official = metrics["rejected"], metrics["nearest_in_train"], metrics["official_test"]
    return (
        f"{metrics['images']} photographs in {metrics['groups']['total']} groups: {listed(metrics['classes'])}\n"
        f"split: {listed({name: part['images'] for name, part in metrics['splits'].items()})}; of test "
        f"{leak['test']['alike_share']:.1%} look nearly like one in train, drawn picture by picture it would be "
        f"{leak['test_if_drawn_by_picture']['alike_share']:.1%}\n"
        f"left out of {metrics['files']} files: {listed(rejected['reasons'])}; data/processed/rejected.csv names each\n"
        f"labels fixed: {metrics['label_fixes']['applied']}; "
        f"in conflict: {metrics['duplicates']['conflicting_labels']}; crops: {listed(metrics['crops'])}; "
        f"official test pictures: {official['found']} found, {official['used']} used; other files: {metrics['other_files']}"
    )


def _split(
    decoded: DecodedImages, groups: Sequence[str], splits: Mapping[int, str], classes: Sequence[str], name: str
) -> dict[str, Any]:
    rows = [row for row, split in splits.items() if split == name]
    labels = [decoded.listed[row].label for row in rows]
    return {
        "images": len(rows),
        "share": len(rows) / len(splits),
        "groups": len({groups[row] for row in rows}),
        "classes": {label: labels.count(label) for label in classes},
    }


def _leak_check(thumbnails: np.ndarray, split: list[str], seed: int) -> dict[str, Any]:
    """How alike the nearest training picture is, beside the same for splits of these sizes drawn picture by picture."""
    shuffled = np.random.default_rng(seed).permutation(np.array(split)).tolist()
    check: dict[str, Any] = {"alike_from": ALIKE}
    for name in (VAL, TEST):
        for title, drawn in ((name, split), (f"{name}_if_drawn_by_picture", shuffled)):
            nearest = nearest_in_train(thumbnails, drawn, name)
            check[title] = {
                "median": round(float(np.median(nearest)), 4),
                "highest": round(float(nearest.max()), 4),
                "alike_share": float((nearest >= ALIKE).mean()),
            }
    return check
