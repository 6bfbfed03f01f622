"""Classify photographs with a trained model.  Run: python -m stages.predict <clean|adv> <file or folder>...

Reads data/models/<model>.safetensors, metrics/ and dvc.lock; writes nothing. No stage of the pipeline. Ends with status 1 when
a file could not be read.
"""

import sys
from pathlib import Path

from stages.core.errors import InputError, run
from stages.photographs.decoding import ImageDecodeError
from stages.serving.card import read_card, weights_path
from stages.serving.predictor import ImagePredictor

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def main(model: str, paths: list[Path]) -> dict[Path, dict[str, float]]:
    """Print an answer for each photograph; returns file -> class -> probability."""
    classifier = ImagePredictor(weights_path(model), read_card(model))
    pixels, refused = {}, {}
    for file in [file for path in paths for file in photographs(path)]:
        try:
            pixels[file] = classifier.pixels(file.read_bytes())
        except ImageDecodeError as error:
            refused[file] = str(error)
    answers = {}
    for file, row in zip(pixels, classifier.probabilities(list(pixels.values())), strict=True):
        answers[file] = dict(zip(classifier.classes, map(float, row), strict=True))
        best = max(answers[file], key=answers[file].__getitem__)
        print(f"{file}\t{best}\t" + ", ".join(f"{name} {share:.3f}" for name, share in answers[file].items()))
    print(classifier.card.notice())
    if refused:
        raise InputError("\n".join(f"{file}: expected a photograph, got: {reason}" for file, reason in refused.items()))
    return answers


def photographs(path: Path) -> list[Path]:
    """The file itself, or every picture below a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
    if not found:
        raise InputError(f"{path}: expected files ending in {', '.join(ENDINGS)}, got none")
    return found


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("clean", "adv"):
        sys.exit(f"error: expected clean or adv, then files or folders, got {' '.join(sys.argv[1:]) or 'nothing'}")
    run(lambda: main(sys.argv[1], [Path(argument) for argument in sys.argv[2:]]))
