"""What was found, rejected, grouped and split, in numbers: the content of metrics/data.json."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stages.core.dataset import SPLITS, is_transformation_zone, natural_sort_key
from stages.core.errors import InputError
from stages.core.params import DataParams
from stages.photographs.groups import COPY, NEAR, SCENE, DuplicatePair, find_label_conflicts
from stages.photographs.image_index import IN_USE, ImageIndex, ImageRecord
from stages.photographs.reading import DecodedImages
from stages.photographs.splits import TEST

SHARE_TOLERANCE = 0.5  # of a requested share, by which a split may miss it without a warning
NOT_INVALID = ("copy", "conflict", "leak", "excluded")  # reasons that are no fault of the file


class TooManyRejectedError(InputError):
    """More files are invalid than `data.max_rejected` allows."""


def reason_category(reason: str) -> str:
    """The part of a reason before its detail."""
    return reason.partition(":")[0]


def _count_categories(reasons: Iterable[str]) -> Counter[str]:
    return Counter(reason_category(reason) for reason in reasons)


def _invalid_files(rejected: Mapping[str, str]) -> dict[str, str]:
    """Those of the rejected files, path -> reason, that are at fault themselves."""
    files = rejected.items()
    return {path: reason for path, reason in files if reason_category(reason) not in NOT_INVALID}


def check_invalid_fraction(rejected: Mapping[str, str], decoded: int, most: float) -> None:
    """Raise TooManyRejectedError, with a summary, for more than this fraction of invalid files."""
    invalid = _invalid_files(rejected)
    total = len(invalid) + decoded
    fraction = len(invalid) / max(1, total)
    if fraction > most:
        categories = dict(_count_categories(invalid.values()).most_common())
        path, reason = min(invalid.items())
        raise TooManyRejectedError(
            f"data.max_rejected: expected at most {most:.1%} invalid files, got {fraction:.1%} "
            f"({len(invalid)} of {total}): {_listed(categories)}; the first is {path} ({reason}), "
            "all are in data/processed/rejected.csv"
        )


def check_no_class_lost(
    records: Sequence[ImageRecord], kept: Sequence[ImageRecord], rejected: Mapping[str, str]
) -> None:
    """Raise TooManyRejectedError when a class has no image left.

    Otherwise the model would quietly know fewer classes.
    """
    lost = {record.label for record in records} - {record.label for record in kept}
    if lost:
        label = min(lost, key=natural_sort_key)
        path = next(record.path for record in records if record.label == label)
        raise TooManyRejectedError(
            f"class {label}: expected valid images, got none left, the first is {path} "
            f"({rejected.get(path, 'rejected')}): data/processed/rejected.csv has the reasons"
        )


def summarize(
    index: ImageIndex,
    decoded: DecodedImages,
    pairs: Sequence[DuplicatePair],
    groups: Sequence[str],
    splits: Mapping[int, str],
    rejected: Mapping[str, str],
    leakage: Mapping[str, Any],
) -> dict[str, Any]:
    """Nested counts; fractions in 0..1.

    Args:
        index: the files that were found.
        decoded: the images that could be read.
        pairs: of duplicates.
        groups: of the images.
        splits: row of `decoded` -> split, for the rows of the processed dataset.
        rejected: path -> reason.
        leakage: what `leakage_check` found.
    """
    files = len(decoded.records) + len(index.rejected) + len(decoded.rejected)
    records = [decoded.records[row] for row in splits]
    classes = _count_classes(records)
    given_test = sum(record.split == TEST for record in records) if index.official_test else 0
    return {
        "synthetic": index.synthetic,
        "files": files,
        "images": len(records),
        "classes": classes,
        "rejected": _summarize_rejected(rejected, files),
        "other_files": {kind: len(paths) for kind, paths in sorted(index.bystanders.items())},
        "excluded": index.excluded,
        "label_fixes": index.label_fixes,
        "official_test": {"found": index.official_test, "used": given_test},
        "duplicates": _summarize_duplicates(decoded, pairs),
        "groups": _summarize_groups(records, [groups[row] for row in splits]),
        "splits": {name: _summarize_split(decoded, groups, splits, name) for name in SPLITS},
        **_summarize_images(decoded, list(splits), with_stains=is_transformation_zone(classes)),
        "nearest_in_train": leakage,
    }


def _count_classes(records: Iterable[ImageRecord]) -> dict[str, int]:
    counts = Counter(record.label for record in records)
    return {label: counts[label] for label in sorted(counts, key=natural_sort_key)}


def _summarize_rejected(rejected: Mapping[str, str], files: int) -> dict[str, Any]:
    invalid = len(_invalid_files(rejected))
    return {
        "total": len(rejected),
        "faulty": invalid,
        "faulty_share": invalid / files,
        "reasons": dict(_count_categories(rejected.values())),
    }


def _summarize_duplicates(decoded: DecodedImages, pairs: Sequence[DuplicatePair]) -> dict[str, int]:
    """Pairs of each kind, and images with another label than a pair's other image."""
    kinds = Counter(pair.kind for pair in pairs)
    return {
        "copies": kinds[COPY],
        "near": kinds[NEAR],
        "same_scene": kinds[SCENE],
        "conflicting_labels": len(find_label_conflicts(decoded.records, pairs)),
    }


def _summarize_groups(records: Sequence[ImageRecord], groups: Sequence[str]) -> dict[str, int]:
    sizes = Counter(groups)
    return {
        "total": len(sizes),
        "largest": max(sizes.values()),
        "of_several": sum(size > 1 for size in sizes.values()),
        "images_with_known_patient": sum(bool(record.patient) for record in records),
    }


def _summarize_split(
    decoded: DecodedImages, groups: Sequence[str], splits: Mapping[int, str], name: str
) -> dict[str, Any]:
    rows = [row for row, split in splits.items() if split == name]
    return {
        "images": len(rows),
        "share": len(rows) / len(splits),
        "groups": len({groups[row] for row in rows}),
        "classes": _count_classes(decoded.records[row] for row in rows),
    }


def _summarize_images(
    decoded: DecodedImages, rows: Sequence[int], *, with_stains: bool
) -> dict[str, Any]:
    images = [decoded.metadata[row] for row in rows]
    sides = np.array([min(image.width, image.height) for image in images])
    return {
        "cropped": sum(not image.crop_box.is_whole for image in images),
        "crops": dict(Counter(image.crop_box.kind for image in images)),
        "modes": dict(Counter(image.mode for image in images)),
        "stain_guess": dict(Counter(image.stain for image in images)) if with_stains else {},
        "shorter_side": {
            "smallest": int(sides.min()),
            "median": float(np.median(sides)),
            "largest": int(sides.max()),
        },
    }


def find_warnings(index: ImageIndex, metrics: Mapping[str, Any], data: DataParams) -> list[str]:
    """What is wrong with the dataset, though it can be used, each with its remedy."""
    warnings = list(index.warnings)
    images, known = metrics["images"], metrics["groups"]["images_with_known_patient"]
    if known < images:
        warnings.append(
            f"the patients of {images - known:,} of {images:,} images are unknown: they are kept "
            "out of two splits only where two images show the same scene (data.groups, "
            "data.group_pattern or the column patient of data.table names patients)"
        )
    warnings += metrics["nearest_in_train"]["signs"]
    if conflicts := metrics["duplicates"]["conflicting_labels"]:
        warnings.append(
            f"{conflicts:,} images have duplicates with another label: plots/duplicates.png shows "
            "some (data.label_fixes corrects them, data.conflicting_labels: drop excludes them)"
        )
    for mode, count in metrics["modes"].items():
        if mode.endswith(" bits"):
            warnings.append(
                f"{mode}: {count:,} of {images:,} images, brightened to the full range; save them "
                "with 8 bits if they were meant to be dark"
            )
    if data.test == "split" and data.table == "none":
        for name, wanted in (("val", data.val_fraction), ("test", data.test_fraction)):
            share = metrics["splits"][name]["share"]
            if abs(share - wanted) > SHARE_TOLERANCE * wanted:
                warnings.append(
                    f"{name} has {share:.1%} of the images, data.{name}_fraction asks for "
                    f"{wanted:.1%}: there are too few groups, or too large ones"
                )
    return warnings


def format_summary(index: ImageIndex, metrics: Mapping[str, Any]) -> str:
    """What `summarize` found, in a few lines for the terminal."""
    leakage, groups = metrics["nearest_in_train"], metrics["groups"]
    test, outliers = leakage[TEST], leakage["outliers"]
    by_group = test["alike_by_group"]
    splits = {name: split["images"] for name, split in metrics["splits"].items()}
    lines = [
        f"{metrics['images']:,} images in {groups['total']:,} groups: "
        f"{_listed(metrics['classes'])}",
        f"split: {_listed(splits)}",
        f"leakage check: {test['alike_share']:.1%} of test are look-alikes of training images "
        f"(random splits by group: {by_group['low']:.1%} to {by_group['high']:.1%}), "
        f"{outliers['share']:.1%} of all unusually close to another group (by chance up to "
        f"{outliers['high']:.1%})",
    ]
    if rejected := metrics["rejected"]["reasons"]:
        lines.append(
            f"rejected of {metrics['files']:,} files: {_listed(rejected)}; "
            "see data/processed/rejected.csv"
        )
    left_out = [
        f"{kind} {len(paths):,} ({min(paths)}{', …' if len(paths) > 1 else ''})"
        for kind, paths in sorted(index.bystanders.items())
        if kind != IN_USE
    ]
    official = metrics["official_test"]
    if unused := official["found"] - official["used"]:
        left_out.append(f"test images without a class {unused:,} (data.test: official uses them)")
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    lines.append(f"crops: {_listed(metrics['crops'])}")
    if corrected := metrics["label_fixes"]["applied"]:
        lines.append(f"label corrections: {corrected:,}")
    if known := groups["images_with_known_patient"]:
        lines.append(f"patients known for {known:,} of {metrics['images']:,} images")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
