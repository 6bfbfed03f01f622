"""Time, memory and recall of the whole preprocess stage as the number of photographs grows.

    python -m benchmarks.scaling [--images 10000 30000 100000] [--workers 0] [--cluster tcp://...]

Draws so many photographs of 128 x 96 pixels, the same round shape with a texture of its own in
each, 1 % of them copies of others: cropped by up to 4 % on each side, brighter or darker, of
another size and compressed again. Runs the stage at 32 pixels in a process of its own, once, with
an empty cache. Prints for each number of photographs the seconds of its parts, the exponent with
which they grow from the number before, the peak memory, the fraction of planted pairs that share a
group and the number of other images in groups.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance

from stages.photographs.parallel import parallel_map

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 128, 96
PLANTED = 100  # one of so many images is an altered copy of the one before
PARTS = ("decode_all", "find_duplicates", "leakage_check")

MEASURE = """
import json, re, resource, sys, time
from pathlib import Path
from stages import preprocess

def timed(name):
    function = getattr(preprocess, name)
    def run(*arguments):
        start = time.perf_counter()
        result = function(*arguments)
        seconds[name] = time.perf_counter() - start
        return result
    setattr(preprocess, name, run)

if __name__ == "__main__":
    seconds = {}
    for name in sys.argv[1:]:
        timed(name)
    start = time.perf_counter()
    preprocess.main()
    seconds["all"] = time.perf_counter() - start
    # Not ru_maxrss, which would begin with the size of the process that started this one.
    own = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds, "main": own, "worker": workers}))
"""


def draw(seed: int) -> Image.Image:
    """A disc on a darker ground, as every cervix is round, with texture at two scales."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1.33 : 1.33 : WIDTH * 1j]
    picture = np.where(np.hypot(x, y) < 0.8 + 0.1 * rng.standard_normal(), 150.0, 70.0)[
        ..., None
    ] + [40, 0, 0]
    for cells, strength in ((12, 40), (48, 25)):
        grid = Image.fromarray(rng.integers(0, 255, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        picture += strength * (
            np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float) / 127.5 - 1
        )
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def altered_copy(image: Image.Image, seed: int) -> Image.Image:
    """The same photograph, exported once more."""
    rng = np.random.default_rng([seed, 1])
    left, right = rng.uniform(0, 0.04, 2) * WIDTH
    upper, lower = rng.uniform(0, 0.04, 2) * HEIGHT
    image = image.crop((int(left), int(upper), int(WIDTH - right), int(HEIGHT - lower)))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    return image.resize(
        (int(WIDTH * (scale := rng.uniform(0.7, 1.1))), int(HEIGHT * scale)),
        Image.Resampling.BICUBIC,
    )


def write_photograph(number: int, folder: Path) -> None:
    """One file; those after every hundredth are altered copies of it."""
    planted = number % PLANTED == 1
    image = altered_copy(draw(number - 1), number) if planted else draw(number)
    image.save(
        folder / "abc"[(number - planted) % 3] / f"{number}.jpg", quality=70 if planted else 90
    )


def measure(folder: Path, workers: int, cluster: str) -> dict:
    """Run the stage over folder/raw."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {
        "source": "raw",
        "image_size": 32,
        "label_fixes": "none",
        "groups": "none",
    }
    params["runtime"] |= {"tracking": False, "workers": workers, "cluster": cluster}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "measure.py").write_text(MEASURE)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "measure.py", *PARTS]
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def recall(folder: Path) -> tuple[int, int, int]:
    """Planted pairs that share a group, planted pairs, and other images that share a group."""
    with (folder / "data/processed/manifest.csv").open(newline="", encoding="utf-8") as stream:
        groups = {int(Path(row["path"]).stem): row["group"] for row in csv.DictReader(stream)}
    planted = [(number - 1, number) for number in groups if number % PLANTED == 1]
    found = [pair for pair in planted if groups.get(pair[0]) == groups[pair[1]]]
    sizes = Counter(groups.values())
    return (
        len(found),
        len(planted),
        sum(size for size in sizes.values() if size > 1) - 2 * len(found),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--images", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="ascending"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--cluster", default="none", help="address of a Dask scheduler")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, "
        f"load before the run {os.getloadavg()[0]:.1f}"
    )
    print(
        "  images  decode  duplicates  leakage  other     all (s)   main  worker (MiB)"
        "  planted pairs found  others joined"
    )
    previous: dict[str, float] = {}
    drawn = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in "abc":
            (folder / "raw" / label).mkdir(parents=True)
        for count in options.images:
            with parallel_map(0) as map_:
                list(map_(partial(write_photograph, folder=folder / "raw"), range(drawn, count)))
            drawn = count
            result = measure(folder, options.workers, options.cluster)
            seconds = {part: result["seconds"][part] for part in PARTS}
            seconds |= {
                "other": result["seconds"]["all"] - sum(seconds.values()),
                "all": result["seconds"]["all"],
            }
            found, planted, others = recall(folder)
            print(
                f"{count:8} {seconds['decode_all']:7.0f} {seconds['find_duplicates']:11.0f} "
                f"{seconds['leakage_check']:8.0f} {seconds['other']:6.0f} {seconds['all']:7.0f} "
                f"{result['main'] / 1024:10.0f} {result['worker'] / 1024:7.0f} "
                f"{found:18}/{planted} {others:14}",
                flush=True,
            )
            if previous:
                growth = math.log(count / previous["images"])
                exponents = [
                    f"{part} {math.log(seconds[part] / previous[part]) / growth:.2f}"
                    for part in seconds
                ]
                print("         exponents:", ", ".join(exponents))
            previous = seconds | {"images": count}


if __name__ == "__main__":
    main()
