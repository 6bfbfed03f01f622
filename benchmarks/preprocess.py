"""Time, memory and exactness of reading 12-megapixel photographs, next to torchvision and Pillow.

    python -m benchmarks.preprocess [--images 24]

Draws a JPEG of 4128 x 3096 pixels and about 2.9 MB (the size that dominates the challenge's set),
then reads it on one core

    torchvision   as torchvision's ImageFolder does: Pillow decodes all pixels, Resize and
                  CenterCrop follow
    ours          as the stage does: read, hash, decode at reduced size, cut, resize, thumbnail,
                  save to the cache
    cached        the same when the cache knows the file
    draft         Pillow's decoding at reduced size alone: what no program that uses it can undercut

and compares the pixels with those of a full decode and the same final filter. The whole stage is
measured by `scaling.py`.
"""

import argparse
import io
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from threadpoolctl import threadpool_limits
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from stages.photographs.decoding import OVERSAMPLE, decode_image
from stages.photographs.reading import DecodeConfig, decode_file

ROOT = Path(__file__).parents[1]

SIZE = 224  # pixels, what ResNet-50 is usually fed
WIDTH, HEIGHT = 4128, 3096


def draw(seed: int) -> Image.Image:
    """Smooth shapes, finer texture and sensor noise: compresses like a phone's photograph."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells, strength in ((6, 60), (40, 18), (300, 7), (1200, 4)):
        grid = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        picture += strength * (
            np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / 127.5
            - 1
        )
    picture += np.array([170, 110, 110], np.float32) + 4 * rng.standard_normal(
        picture.shape, np.float32
    )
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def per_image(
    ways: dict[str, Callable[[Path], object]], files: list[Path], rounds: int = 3
) -> dict[str, float]:
    """Milliseconds per file, the best of some rounds.

    The ways take turns, so that a busy machine is busy for each.
    """
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, function in ways.items():
            start = time.perf_counter()
            for file in files:
                function(file)
            best[name] = min(best[name], (time.perf_counter() - start) / len(files) * 1e3)
    return best


def draft_alone(file: Path) -> None:
    """The decoder's work and nothing else."""
    with Image.open(file) as image:
        image.draft(None, (int(OVERSAMPLE * SIZE * WIDTH / HEIGHT), int(OVERSAMPLE * SIZE)))
        image.load()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def compare(folder: Path, count: int) -> None:
    """Print milliseconds per image and core, and the exactness of the result."""
    files = []
    for seed in range(count):
        files.append(folder / f"{seed}.jpg")
        draw(seed % 4).save(files[-1], quality=93)
        with files[-1].open("ab") as stream:
            stream.write(seed.to_bytes(4, "big"))  # another hash for the cache, the same picture
    usual = transforms.Compose(
        [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    )
    square, cervix = (DecodeConfig(SIZE, crop) for crop in ("square", "cervix"))
    fresh = (
        folder / f"cache{number}" for number in itertools.count()
    )  # another one each time, so that nothing is in it
    for file in files:
        decode_file(file, square, folder / "known")
    ways = {
        "torchvision": lambda file: usual(default_loader(str(file))),
        "ours, square": lambda file: decode_file(file, square, next(fresh)),
        "ours, cervix": lambda file: decode_file(file, cervix, next(fresh)),
        "cached": lambda file: decode_file(file, square, folder / "known"),
        "draft": draft_alone,
    }
    print(
        f"{count} files of {WIDTH} x {HEIGHT} pixels, "
        f"{files[0].stat().st_size / 1e6:.1f} MB -> {SIZE} x {SIZE}; "
        "ms per image, one core, best of 3 rounds, and how many times as fast as torchvision:"
    )
    times = per_image(ways, files)
    for name, one in times.items():
        print(f"  {name:12}  {one:6.1f}  {times['torchvision'] / one:5.1f}")

    content = files[0].read_bytes()
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    print("against a full decode with the same filter:")
    for crop in ("square", "cervix"):
        reduced = decode_image(content, SIZE, crop)
        region = reduced.crop_box
        box = (
            region.left * WIDTH,
            region.top * HEIGHT,
            region.right * WIDTH,
            region.bottom * HEIGHT,
        )
        full = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        difference = np.abs(reduced.pixels.astype(int) - full).max()
        print(
            f"  {crop}: PSNR {psnr(reduced.pixels, full):.1f} dB, "
            f"largest difference {difference} of 255"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=24, help="large JPEGs to read")
    arguments = parser.parse_args()
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"Pillow {PIL.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load before the run {loads}"
    )
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        compare(Path(name), arguments.images)


if __name__ == "__main__":
    main()
