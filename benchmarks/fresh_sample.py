"""The default models on a sample that nobody looked at: is the test split's accuracy too high?

    python -m benchmarks.fresh_sample [--seed 4711] [--attacked 400] [--project .]

Difficulty, image size and epochs were chosen while looking at results of the bundled sample's test
split. Here the sample is drawn again from another seed, all patients new, into a temporary folder,
and decoded by `preprocess`; both models of data/models are evaluated on its images, clean and under
the attacks of `attack_eval` at attack.eps that need nothing but the model: noise, FGSM, BIM, PGD
and the ensemble. The test split is evaluated in the same way.
"""

import argparse
import importlib
import os
import platform
import sys
import tempfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages import preprocess
from stages.core.dataset import ImageDataset, load_dataset
from stages.core.devices import make_fabric
from stages.core.params import Params
from stages.core.params_file import load_params
from stages.core.paths import MODELS, PROCESSED, weights_path
from stages.core.predictions import is_correct, worst_case
from stages.measurements import suite
from stages.measurements.context import Context
from stages.measurements.steps import Steps
from stages.measurements.target import TargetModel
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.report.formatting import metric
from stages.report.intervals import ConfidenceIntervals
from stages.report.results import with_interval

DATA = Path(__file__).parents[1] / "data"


def draw(folder: Path, seed: int) -> None:
    """The sample of another seed, as data/draw_sample.py draws it."""
    sys.path.append(str(DATA))
    module = importlib.import_module("draw_sample")
    if seed == module.SEED:
        raise SystemExit(f"--seed: expected another one than the bundled sample's, got {seed}")
    module.SEED = seed
    module.draw(folder)


def fresh_dataset(folder: Path, params: Params, seed: int) -> ImageDataset:
    """The processed dataset of a new sample, in this folder; all its images are test images."""
    draw(folder / "sample", seed)
    data = params.data.model_copy(
        update={"source": str(folder / "sample"), "label_fixes": "none", "exclude": "none"}
    )
    runtime = params.runtime.model_copy(update={"tracking": False})
    own = params.model_copy(update={"data": data, "runtime": runtime})
    (folder / "params.yaml").write_text(own.model_dump_json(), encoding="utf-8")  # JSON is YAML
    with chdir(folder):
        preprocess.main()
    dataset = load_dataset(folder / PROCESSED)
    manifest = dataset.manifest.assign(split="test")
    return ImageDataset(dataset.images, manifest, dataset.classes, dataset.labels)


def accuracies(
    params: Params, dataset: ImageDataset, weights: Path, attacked: int
) -> dict[str, dict[str, float]]:
    """Clean accuracy on all test images and robust accuracy on some, with intervals and n."""
    fabric, p = make_fabric(params.runtime), params.attack_eval
    split = DatasetSplit.from_dataset(dataset, "test")
    network = classifier.load(weights, dataset.classes, dataset.image_size)
    target = TargetModel.of(network, fabric, split, p.batch_size, params.seed)
    attack = params.attack.model_copy(update={"eps_grid": ()})
    context = Context(attack, p, dataset, {"model": target}, None, Steps(fabric))
    clean = suite.clean_rows(context, target, "clean, all images")
    some = target.on(split.subset(split.stratified_positions(attacked, params.seed)))
    rows = suite.run(replace(context, models={"model": some}))["predictions"]
    return {"clean": accuracy(params, clean), "robust": accuracy(params, worst_case(rows))}


def accuracy(params: Params, rows: pd.DataFrame) -> dict[str, float]:
    """With its interval over patients; n images of so many groups."""
    p, correct = params.evaluate, is_correct(rows)
    intervals = ConfidenceIntervals(rows["group"], p.confidence, p.bootstrap, params.seed)
    found = with_interval("accuracy", correct.mean(), intervals.proportion(correct))
    return found | {"n": len(rows), "groups": rows["group"].nunique()}


def difference(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Second minus first, of independent samples, with its interval from theirs.

    Newcombe's method 10 (1998), for any interval: Zou and Donner 2008.
    """
    change = second["accuracy"] - first["accuracy"]
    below = np.hypot(
        second["accuracy"] - second["accuracy_low"], first["accuracy_high"] - first["accuracy"]
    )
    above = np.hypot(
        second["accuracy_high"] - second["accuracy"], first["accuracy"] - first["accuracy_low"]
    )
    return with_interval("change", change, (change - below, change + above))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=4711, help="of the new sample")
    parser.add_argument("--attacked", type=int, default=400, help="its images that are attacked")
    parser.add_argument("--project", type=Path, default=Path("."), help="a folder with models")
    arguments = parser.parse_args()
    project = arguments.project.absolute()
    params = load_params(project / "params.yaml")
    known = load_dataset(project / PROCESSED)
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        fresh = fresh_dataset(Path(folder), params, arguments.seed)
        print("| model | accuracy | test split | new sample | difference |\n|---|---|---|---|---|")
        for model in MODELS:
            weights = project / weights_path(model)
            tables = [accuracies(params, d, weights, arguments.attacked) for d in (known, fresh)]
            for name in ("clean", "robust"):
                first, second = (table[name] for table in tables)
                change = metric(difference(first, second), "change", signed=True)
                cells = [
                    f"{metric(found, 'accuracy')} (n = {found['n']}, {found['groups']} groups)"
                    for found in (first, second)
                ]
                print(f"| {model} | {name} | {' | '.join(cells)} | {change} |", flush=True)


if __name__ == "__main__":
    main()
