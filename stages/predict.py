"""Classify images with a trained model.

Run: python -m stages.predict <clean|adv> <file or folder>...

Reads data/models/<model>.safetensors, metrics/ and dvc.lock; writes nothing. Not a stage of the
pipeline. Exits with status 1 when a file is no usable image, after the predictions of all others;
says which files of a folder are none by their names.
"""

import argparse
import sys
from pathlib import Path

from stages.core.errors import InputError
from stages.core.paths import MODELS, weights_path
from stages.core.processes import run_cli
from stages.photographs.decoding import ImageDecodeError
from stages.photographs.reading import MAX_BYTES
from stages.photographs.source_files import find_files
from stages.serving.evaluated_model import read_evaluated_model
from stages.serving.predictor import BATCH, ImagePredictor

NAMED = 5  # files of each kind that are named


def main(model: str, paths: list[Path]) -> None:
    """Print a prediction for each image, BATCH of them in memory at a time.

    Raises:
        InputError: at the end, for files that are no usable images.
    """
    predictor = ImagePredictor(weights_path(model), read_evaluated_model(model))
    files, others, refused = [], [], []
    for path in paths:
        images, left_out = image_files(path) if path.is_dir() else ([path], {})
        files += images
        if left_out:
            others.append(f"{path}: not predicted: {describe(left_out)}")
    for start in range(0, len(files), BATCH):
        pixels = {}
        for file in files[start : start + BATCH]:
            try:
                pixels[file] = predictor.preprocess(read_file(file))
            except (ImageDecodeError, OSError) as error:
                refused.append(f"{file}: expected an image, got: {error}")
        rows = predictor.predict_proba(list(pixels.values()))
        for file, row in zip(pixels, rows, strict=True):
            named = zip(predictor.classes, row, strict=True)
            probabilities = ", ".join(f"{name} {value:.3f}" for name, value in named)
            print(f"{file}\t{predictor.classes[int(row.argmax())]}\t{probabilities}")
    print(predictor.evaluated.disclaimer())
    print("\n".join(others), end="\n" if others else "", file=sys.stderr)
    if refused:
        raise InputError("\n".join(refused))


def image_files(folder: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The images below a folder, and of all other files: why they are left out -> paths.

    Raises:
        InputError: when there is no image.
    """
    found = find_files(folder)
    if not found.pictures:
        raise InputError(f"{folder}: expected images, got none")
    others = dict(found.bystanders)
    for path, reason in (found.rejected | found.closed).items():
        others.setdefault(reason, []).append(path)
    return list(found.pictures.values()), others


def describe(others: dict[str, list[str]]) -> str:
    """``3 hidden (.a/1.jpg, ...); 1 documents (notes.txt)``."""
    parts = []
    for kind, names in others.items():
        more = ", ..." if len(names) > NAMED else ""
        parts.append(f"{len(names)} {kind} ({', '.join(names[:NAMED])}{more})")
    return "; ".join(parts)


def read_file(file: Path) -> bytes:
    """The content of a file.

    Raises:
        ImageDecodeError: when it is larger than the files that preprocess reads.
        OSError: when it can't be read.
    """
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ImageDecodeError(f"too large: more than {MAX_BYTES // 2**20} MiB")
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to use")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="path", help="image file, or folder of images"
    )
    run_cli(main, **vars(parser.parse_args()))
