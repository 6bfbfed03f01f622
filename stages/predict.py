"""Classify images with a trained model.

Run: python -m stages.predict <clean|adv> <file or folder>...

Reads data/models/<model>.safetensors, metrics/ and dvc.lock; writes nothing. Not a stage of the
pipeline. Exits with status 1 when a file is no usable image, after the predictions of all others.
"""

import argparse
from pathlib import Path

from stages.core.errors import InputError
from stages.core.paths import MODELS, weights_path
from stages.core.processes import run_cli
from stages.photographs.decoding import ImageDecodeError
from stages.photographs.reading import MAX_BYTES
from stages.photographs.source_files import SUFFIXES
from stages.serving.evaluated_model import read_evaluated_model
from stages.serving.predictor import BATCH, ImagePredictor


def main(model: str, paths: list[Path]) -> None:
    """Print a prediction for each image, BATCH of them in memory at a time.

    Raises:
        InputError: at the end, for files that are no usable images.
    """
    predictor = ImagePredictor(weights_path(model), read_evaluated_model(model))
    files = [file for path in paths for file in image_files(path)]
    refused = []
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
    if refused:
        raise InputError("\n".join(refused))


def image_files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder that are images by name and not hidden.

    Raises:
        InputError: when a folder has none.
    """
    if not path.is_dir():
        return [path]
    found = []
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.suffix.lower() in SUFFIXES and file.is_file():
            found.append(file)
    if not found:
        raise InputError(f"{path}: expected files ending in {', '.join(SUFFIXES)}, got none")
    return sorted(found)


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
