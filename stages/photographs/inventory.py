"""What was found, rejected, grouped and split, in numbers: the content of metrics/data.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.core.dataset import SPLITS, is_transformation_zone, natural_sort_key
from stages.core.errors import InputError
from stages.photographs.groups import COPY, NEAR, DuplicatePair, find_label_conflicts
from stages.photographs.listing import ImageIndex, ImageRecord
from stages.photographs.reading import DecodedImages
from stages.photographs.splits import TEST

NOT_INVALID = ("copy", "conflict", "leak", "excluded")  # reasons that are no fault of the file


class TooManyRejectedError(InputError):
    """More files are invalid than `data.max_rejected` allows."""


def reason_category(reason: str) -> str:
    """The part of a reason before its detail."""
    return reason.partition(":")[0]


def check_invalid_fraction(rejected: Mapping[str, str], decoded: int, most: float) -> None:
    """Raise TooManyRejectedError, with a summary, when the fraction of invalid files is above `most`."""
    invalid = {
        path: reason
        for path, reason in rejected.items()
        if reason_category(reason) not in NOT_INVALID
    }
    fraction = len(invalid) / max(1, len(invalid) + decoded)
    if fraction > most:
        counts = Counter(reason_category(reason) for reason in invalid.values()).most_common()
        summary = ", ".join(f"{count} {name}" for name, count in counts)
        path, reason = min(invalid.items())
        raise TooManyRejectedError(
            f"data.max_rejected: expected at most {most:.1%} invalid files, got {fraction:.1%} ({len(invalid)} of "
            f"{len(invalid) + decoded}): {summary}; the first is {path} ({reason}), all are in data/processed/rejected.csv"
        )


def check_no_class_lost(records: Sequence[ImageRecord], kept: Sequence[ImageRecord]) -> None:
    """Raise TooManyRejectedError when a class has no image left: the model must not quietly know fewer classes."""
    lost = {record.label for record in records} - {record.label for record in kept}
    for label in sorted(lost, key=natural_sort_key):
        raise TooManyRejectedError(
            f"class {label}: expected valid images, got none left: data/processed/rejected.csv has the reasons"
        )


def summarize(
    listing: ImageIndex,
    decoded: DecodedImages,
    pairs: Sequence[DuplicatePair],
    groups: Sequence[str],
    splits: Mapping[int, str],
    rejected: Mapping[str, str],
    leakage: Mapping[str, Any],
) -> dict[str, Any]:
    """Nested counts; fractions in 0..1.

    Args:
        listing: the files that were found.
        decoded: the images that could be read.
        pairs: of duplicates.
        groups: of the images.
        splits: row of `decoded` -> split, for the rows of the processed dataset.
        rejected: path -> reason.
        leakage: what `leakage_check` found.
    """
    rows = list(splits)
    labels = [decoded.records[row].label for row in rows]
    classes = sorted(set(labels), key=natural_sort_key)
    invalid = sum(reason_category(reason) not in NOT_INVALID for reason in rejected.values())
    files = len(decoded.records) + len(listing.rejected) + len(decoded.rejected)
    sizes = np.array([(decoded.metadata[row].width, decoded.metadata[row].height) for row in rows])
    group_sizes = Counter(groups[row] for row in rows)
    near = [pair for pair in pairs if pair.kind == NEAR]
    return {
        "synthetic": listing.synthetic,
        "files": files,
        "images": len(rows),
        "classes": {name: labels.count(name) for name in classes},
        "rejected": {
            "total": len(rejected),
            "faulty": invalid,
            "faulty_share": invalid / files,
            "reasons": dict(Counter(reason_category(reason) for reason in rejected.values())),
        },
        "other_files": listing.other_files,
        "excluded": listing.excluded,
        "label_fixes": listing.label_fixes,
        "official_test": {
            "found": listing.official_test,
            "used": sum(decoded.records[row].split == TEST for row in rows)
            if listing.official_test
            else 0,
        },
        "duplicates": {
            "copies": sum(pair.kind == COPY for pair in pairs),
            "near": len({row for pair in near for row in (pair.first, pair.second)}),
            "near_links": len(near),
            "conflicting_labels": len(find_label_conflicts(decoded.records, pairs)),
        },
        "groups": {
            "total": len(group_sizes),
            "largest": max(group_sizes.values()),
            "of_several": sum(size > 1 for size in group_sizes.values()),
            "images_with_known_patient": sum(bool(decoded.records[row].patient) for row in rows),
        },
        "splits": {name: _split_summary(decoded, groups, splits, classes, name) for name in SPLITS},
        "cropped": sum(not decoded.metadata[row].crop_box.is_whole for row in rows),
        "crops": dict(Counter(decoded.metadata[row].crop_box.kind for row in rows)),
        "modes": dict(Counter(decoded.metadata[row].mode for row in rows)),
        "stain_guess": dict(Counter(decoded.metadata[row].stain for row in rows))
        if is_transformation_zone(classes)
        else {},
        "shorter_side": {
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes.min(1))),
            "largest": int(sizes.min(1).max()),
        },
        "nearest_in_train": leakage,
    }


def _split_summary(
    decoded: DecodedImages,
    groups: Sequence[str],
    splits: Mapping[int, str],
    classes: Sequence[str],
    name: str,
) -> dict[str, Any]:
    rows = [row for row, split in splits.items() if split == name]
    labels = [decoded.records[row].label for row in rows]
    return {
        "images": len(rows),
        "share": len(rows) / len(splits),
        "groups": len({groups[row] for row in rows}),
        "classes": {label: labels.count(label) for label in classes},
    }


def format_summary(metrics: Mapping[str, Any]) -> str:
    """What `summarize` found, in a few lines for the terminal."""

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    rejected, leakage, official = (
        metrics["rejected"],
        metrics["nearest_in_train"],
        metrics["official_test"],
    )
    return (
        f"{metrics['images']} images in {metrics['groups']['total']} groups: {listed(metrics['classes'])}\n"
        f"split: {listed({name: part['images'] for name, part in metrics['splits'].items()})}; near-duplicates of training "
        f"images in test: {leakage['test']['alike_share']:.1%} (image-level random split: "
        f"{leakage['test_if_drawn_by_picture']['alike_share']:.1%})\n"
        f"rejected of {metrics['files']} files: {listed(rejected['reasons'])}; see data/processed/rejected.csv\n"
        f"label corrections: {metrics['label_fixes']['applied']}; "
        f"label conflicts: {metrics['duplicates']['conflicting_labels']}; crops: {listed(metrics['crops'])}; "
        f"official test images: {official['found']} found, {official['used']} used; ignored files: {metrics['other_files']}"
    )
