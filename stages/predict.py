"""Classify images with a trained model.

Run: python -m stages.predict <clean|adv> <file or folder>...

Reads data/models/<model>.safetensors, metrics/ and dvc.lock; writes nothing. Not a stage of the pipeline. Exits with status 1
when a file could not be read.
"""

import argparse
from pathlib import Path

from stages.core.errors import InputError
from stages.core.paths import MODELS, weights_path
from stages.core.processes import run_cli
from stages.photographs.decoding import ImageDecodeError
from stages.serving.card import read_card
from stages.serving.predictor import ImagePredictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def main(model: str, paths: list[Path]) -> dict[Path, dict[str, float]]:
    """Print a prediction for each image; returns file -> class -> probability."""
    predictor = ImagePredictor(weights_path(model), read_card(model))
    pixels, refused = {}, {}
    for file in [file for path in paths for file in image_files(path)]:
        try:
            pixels[file] = predictor.preprocess(file.read_bytes())
        except (ImageDecodeError, OSError) as error:
            refused[file] = str(error)
    predictions = {}
    for file, row in zip(pixels, predictor.predict_proba(list(pixels.values())), strict=True):
        predictions[file] = dict(zip(predictor.classes, map(float, row), strict=True))
        best = max(predictions[file], key=predictions[file].__getitem__)
        print(
            f"{file}\t{best}\t"
            + ", ".join(f"{name} {value:.3f}" for name, value in predictions[file].items())
        )
    print(predictor.card.disclaimer())
    if refused:
        raise InputError(
            "\n".join(
                f"{file}: expected an image, got: {reason}" for file, reason in refused.items()
            )
        )
    return predictions


def image_files(path: Path) -> list[Path]:
    """The file itself, or every image below a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not found:
        raise InputError(f"{path}: expected files ending in {', '.join(SUFFIXES)}, got none")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to use")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="path", help="image file, or folder of images"
    )
    run_cli(main, **vars(parser.parse_args()))
