"""A project folder around tables made without a model, as the stages before `evaluate` write it."""

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from stages import evaluate
from stages.attacks.registry import SUITE
from stages.core.params_file import load_stage_params
from stages.core.paths import MODELS, PREDICTIONS
from stages.core.predictions import CLEAN, select
from stages.measurements.context import write_results
from stages.measurements.registry import MEASUREMENTS
from stages.report.results import Results, load_results
from tests.helpers.params import write_params
from tests.helpers.prediction_tables import (
    make_calibration,
    make_corruptions,
    make_history,
    make_minimum_eps,
    make_set_attacks,
    make_table,
)

ENSEMBLE = {
    **{"name": "apgd", "attacks": ["apgd", "square"], "target_classes": 2, "images": 40},
    **{"iterations": 20, "queries": 100, "square_images": 40, "square_remaining": 40},
    **{"seed": 0, "library": "pyautoattack 0.2.0"},
}
DESCRIPTION = {
    "arch": "resnet50",
    "image_size": 32,
    "parameters": 23_514_179,
    "sha256": "0af1" * 16,
    "device": "AMD EPYC",
    "precision": "bfloat16",
    "torch": "2.14.1",
}
# What the report reads of metrics/data.json.
DATA = {
    "images": 282,
    "duplicates": {"copies": 2, "near": 9, "same_scene": 4},
    "groups": {"images_with_known_patient": 282, "total": 90},
    "nearest_in_train": {
        "alike_from": 0.93,
        "random_splits": 200,
        "test": {
            "alike_share": 0.014,
            "alike_by_group": {"mean": 0.02, "low": 0.004, "high": 0.041},
            "alike_by_image": 0.62,
        },
        "outliers": {"share": 0.0, "high": 0.03},
    },
    "cropped": 120,
    "synthetic": True,
}
MODEL_CHECKS = (
    *("looks_like_softmax", "batch_dependence", "changed_state", "zero_gradients"),
    *("gradient_error", "loss_roughness"),
)
ATTACK_CHECKS = (
    *("norm_excess", "quantization", "lost_iterates", "unconverged", "more_steps", "restarts"),
    *("losses", "float32", "unbounded"),
)
ATTACK_COLUMNS = ["attack", "label", "kind"]
FURTHER = [("universal", "Universal", "universal"), ("apgd", "Ensemble (apgd)", "ensemble")]
ATTACKS = pd.DataFrame(
    [*((attack.name, attack.label, attack.kind) for attack in SUITE), *FURTHER],
    columns=ATTACK_COLUMNS,
)
TRANSFER_ATTACKS = pd.DataFrame(
    [("transfer", "Transfer", "transfer"), ("universal_transfer", "Other's", "universal")],
    columns=ATTACK_COLUMNS,
)


def png(size: int, seed: int = 0) -> bytes:
    """A picture that PNG can't compress."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def make_examples(table: pd.DataFrame, count: int, size: int) -> dict[str, Any]:
    """examples.csv and its pictures: of the first images that are classified correctly."""
    clean = select(table)
    chosen = clean[clean["label"] == clean["prediction"]].head(count)
    attacked = select(table, "pgd", table["eps"].max()).set_index("path")
    files, cells = {}, []
    for i, row in enumerate(chosen.itertuples()):
        names = [f"examples/{i}_{kind}.png" for kind in ("original", "adversarial")]
        files |= {name: png(size, seed) for seed, name in enumerate(names)}
        after = attacked.loc[row.path]
        before = (row.path, "pgd", table["eps"].max(), row.label, row.prediction, row.confidence)
        cells.append((*before, after["prediction"], after["confidence"], *names))
    columns = ["path", "attack", "eps", "label", "original_prediction", "original_confidence"]
    columns += ["adversarial_prediction", "adversarial_confidence", "original", "adversarial"]
    return files | {"examples": pd.DataFrame(cells, columns=columns)}


def attack_results(table: pd.DataFrame, examples: int, size: int) -> dict[str, Any]:
    """What attack_eval writes about one model, but for the transfer attacks."""
    columns, clean = ["check", "value", "n"], select(table)[["path", "label"]]
    checks = {
        "model_checks": [(name, 0.0, 999) for name in MODEL_CHECKS],
        "attack_checks": [*((name, 0.0, 999) for name in ATTACK_CHECKS), ("square_power", 1.0, 32)],
    }
    return {
        "predictions": table,
        "attacks": ATTACKS,
        "ensemble": ENSEMBLE,
        "model": DESCRIPTION,
        "calibration": make_calibration(table),
        "set_attacks": make_set_attacks(table),
        "minimum_eps": make_minimum_eps(table),
        "corruptions": make_corruptions(table),
        "gradients": clean.assign(central_share=np.linspace(0.2, 0.4, len(clean))),
        **{table: pd.DataFrame(rows, columns=columns) for table, rows in checks.items()},
        "universal.png": png(size),
        **make_examples(table, examples, size),
    }


def transfer_results(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What adv's attack_eval writes of the attacks on the other model: FGSM's predictions."""
    parts = [
        select(table, "fgsm", table["eps"].max()).assign(attack=attack, target=model)
        for model, table in tables.items()
        for attack in TRANSFER_ATTACKS["attack"]
    ]
    return {"transfer": pd.concat(parts), "transfer_attacks": TRANSFER_ATTACKS}


def write_dataset(test: pd.DataFrame, classes: tuple[str, ...], size: int) -> None:
    """data/processed: the test images, and 14 of each class for training and validation."""
    others = [
        (f"others/{i}.jpg", f"p{i}", classes[i % len(classes)], "train" if i % 7 else "val")
        for i in range(14 * len(classes))
    ]
    columns = ["path", "group", "label", "split"]
    manifest = pd.concat(
        [test[columns[:3]].assign(split="test"), pd.DataFrame(others, columns=columns)]
    ).sort_values("path")
    widths = np.linspace(100, 200, len(manifest)).astype(int)
    manifest = manifest.assign(sha256="0", width=widths, height=600, stain_guess="green filter")
    folder = Path("data/processed")
    folder.mkdir(parents=True)
    manifest.to_csv(folder / "manifest.csv", index=False)
    shape = (len(manifest), size, size, 3)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    rejected = {"path": ["Type_1/broken <b>.jpg"], "reason": ["truncated & empty"]}
    pd.DataFrame(rejected).to_csv(folder / "rejected.csv", index=False)


def make_project(
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    params: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    examples: int = 2,
    size: int = 32,
    **options: Any,
) -> None:
    """Write all that `evaluate` reads into the current folder.

    Args:
        tables: predictions by model; without them they are made.
        params: changes of the tests' params.yaml, by dotted key.
        data: changes of metrics/data.json.
        results: changes of what attack_eval writes about either model.
        examples: adversarial examples of each model.
        size: of the images.
        options: of `make_table`.
    """
    tables = tables or {model: make_table(model, **options) for model in MODELS}
    first = tables[MODELS[0]]
    classes = tuple(name.removeprefix("p_") for name in first if name.startswith("p_"))
    write_dataset(first[first["attack"] == CLEAN], classes, size)
    for folder in ("plots", "metrics"):
        Path(folder).mkdir()
    Path("metrics/data.json").write_text(json.dumps(DATA | dict(data or {})))
    for sheet in ("rejected", "duplicates", "crops"):
        Path(f"plots/{sheet}.png").write_bytes(png(8))
    for model, table in tables.items():
        written = attack_results(table, examples, size)
        if model == MODELS[-1]:
            written |= transfer_results(tables)
            pictures = itertools.product(range(len(written["examples"])), MODELS)
            written |= {f"examples/{i}_gradient_{of}.png": png(size) for i, of in pictures}
        written |= results or {}
        chosen = [m for m in MEASUREMENTS if all(table.name in written for table in m.tables)]
        for kind in [kind for measurement in chosen for kind in measurement.tables]:
            rows = written[kind.name]
            written[kind.name] = rows[list(kind.all_columns(rows))]
        write_results(PREDICTIONS / model, written, chosen)
        make_history().to_csv(f"plots/training_{model}.csv", index=False)
    changes = {"runtime.tracking": False, "evaluate.bootstrap": 200}
    write_params(Path("params.yaml"), **{**changes, **(params or {})})


def read_results() -> Results:
    """What the current folder holds, read as `evaluate` does."""
    return load_results(load_stage_params(evaluate.Params))


def texts_of(figure: Figure) -> list[str]:
    """Every text in a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
