"""The test images of the Kaggle competition: their classes stand in a table of its own."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from stages.photographs.image_index import ImageIndex, ImageRecord
from stages.photographs.layout import TEST_FOLDER
from stages.photographs.tables import SourceError, read_table

SOLUTION = "solution_stg1_release.csv"  # image_name, and a column of 0 or 1 for each class


def add_official_test(index: ImageIndex, source: Path, tests: list[ImageRecord]) -> None:
    """Add the test images with their classes; those without one are rejected.

    Args:
        index: of the other images.
        source: folder of all.
        tests: the images in the test folder, without classes.

    Raises:
        SourceError: when there are no such images, or not one table of their classes.
    """
    documents = index.bystanders.get("documents", [])
    solutions = [path for path in documents if PurePosixPath(path).name == SOLUTION]
    if not tests or len(solutions) != 1:
        raise SourceError(
            f"data.test: official: expected images in test/test and one {SOLUTION} below {source}, "
            f"got {len(tests)} images and {len(solutions)} such files"
        )
    labels = _read_solution(source / solutions[0])
    for record in tests:
        label = labels.pop(record.file.name, None)
        if label is None:
            index.rejected[record.path] = f"no class: not in {SOLUTION}"
        else:
            index.images.append(replace(record, label=label))
    for name in labels:
        index.rejected[f"{TEST_FOLDER}/{name}"] = f"missing: named in {SOLUTION}"


def _read_solution(file: Path) -> dict[str, str]:
    """File name -> class."""
    labels: dict[str, str] = {}
    for line, row in read_table(file, "image_name"):
        image = row.pop("image_name")
        chosen = [label for label, value in row.items() if value in ("1", "1.0")]
        if len(chosen) != 1:
            got = f"expected 1 for exactly one class, got {len(chosen)}"
            raise SourceError(f"{file}: line {line}: {got}")
        if labels.setdefault(image, chosen[0]) != chosen[0]:
            raise SourceError(f"{file}: line {line}: expected one class of {image}, got another")
    return labels
