"""Tables of predictions with plausible numbers, made without a model, and a whole project folder around them."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from stages.core.checks import grade

from stages.core.predictions import (
    CALIBRATION_ATTACKS,
    CLEAN,
    COLUMNS,
    EXAMPLE_COLUMNS,
    TABLES,
    gradient_file,
    write_examples,
    write_predictions,
    write_table,
    write_transfer,
)

CLASSES = ("Type_1", "Type_2", "Type_3")
EPS = 8 / 255
GRID = tuple(k / 255 for k in (0.25, 0.5, 1, 2, 4, 8))
STRENGTH = {
    "uniform_noise": 0.05,
    "gaussian_noise": 0.06,
    "fgsm": 0.75,
    "bim": 0.95,
    "pgd": 1.0,
    "universal": 0.2,
}
ENSEMBLE = {
    "name": "apgd",
    "attacks": ["apgd", "square"],
    "iterations": 20,
    "restarts": 1,
    "queries": 100,
    "target_classes": 2,
    "images": 40,
    "square_images": 20,
    "square_remaining": 40,
    "seed": 0,
    "library": "pyautoattack 0.2.0",
}
# model.json
DESCRIPTION = {
    "arch": "resnet50",
    "image_size": 64,
    "parameters": 23_514_179,
    "sha256": "0123456789abcdef" * 4,
}
# The parts of metrics/data.json that the report reads.
DATA = {
    "duplicates": {"copies": 2, "near": 9},
    "groups": {"images_with_known_patient": 100, "total": 90},
    "nearest_in_train": {
        "alike_from": 0.93,
        "test": {"alike_share": 0.014},
        "test_if_drawn_by_picture": {"alike_share": 0.62},
    },
    "crops": {"square": 120},
    "cropped": 120,
    "shorter_side": {"smallest": 90, "median": 112.0, "largest": 112},
    "stain_guess": {"acetic acid or none": 100, "Lugol's iodine": 20},
    "synthetic": True,
}
# model -> mean and spread of the clean margin, loss of margin per eps
MODELS = {"clean": (1.6, 1.8, 150.0), "adv": (1.0, 1.6, 30.0)}


def rows(labels, logits, *, attack="none", eps=0.0, classes=CLASSES, groups=None) -> pd.DataFrame:
    """One row per image from label indices (n,) and logits (n, K)."""
    labels, logits = np.asarray(labels), np.asarray(logits, float)
    n, k = logits.shape
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = odds / odds.sum(axis=1, keepdims=True)
    others = np.where(np.eye(k, dtype=bool)[labels], -np.inf, logits)
    paths = [f"{classes[y]}/{i:04d}.jpg" for i, y in enumerate(labels)]
    table = pd.DataFrame({"path": paths, "group": paths if groups is None else groups})
    table = table.assign(
        label=[classes[y] for y in labels],
        attack=attack,
        found_by=attack,
        eps=eps,
        seed=0,
        steps=20 * (attack != "none"),
    )
    table["prediction"] = [classes[i] for i in logits.argmax(axis=1)]
    table["confidence"], table["margin"] = (
        p.max(axis=1),
        logits[np.arange(n), labels] - others.max(axis=1),
    )
    table["linf"], table["l2"], table["ssim"] = eps, eps * 60.0, 1 - eps
    return pd.concat(
        [table[list(COLUMNS)], pd.DataFrame(p, columns=[f"p_{c}" for c in classes])], axis=1
    )


def make_table(
    model="clean",
    n=120,
    seed=0,
    fractions=(0.3, 0.45, 0.25),
    classes=CLASSES,
    per_group=1,
    always=None,
) -> pd.DataFrame:
    """A whole predictions.csv: every attack at EPS, pgd over GRID.

    Args:
        model: one of MODELS.
        n: images.
        seed: of the random numbers.
        fractions: of the classes among the images.
        classes: their names.
        per_group: images per patient.
        always: the prediction under every attack: "correct", "wrong" or "first" (class); None: it depends on the margin.
    """
    rng = np.random.default_rng(seed)
    mean, spread, slope = MODELS[model]
    labels = rng.choice(len(classes), n, p=fractions)
    margin, rival = rng.normal(mean, spread, n), rng.integers(1, len(classes), n)
    groups = [f"patient {i // per_group}" for i in range(n)]

    def predict(attack, eps, loss):
        logits = np.full((n, len(classes)), -1.0)
        logits[np.arange(n), (labels + rival) % len(classes)] = 0.0
        logits[np.arange(n), labels] = margin - loss
        if always:
            predicted = {
                "correct": labels,
                "wrong": (labels + rival) % len(classes),
                "first": np.zeros(n, int),
            }[always]
            logits = np.eye(len(classes))[predicted] * 4.0
        return rows(labels, logits, attack=attack, eps=eps, classes=classes, groups=groups)

    parts = [predict("none", 0.0, 0.0)]
    parts += [predict(attack, EPS, slope * EPS * strength) for attack, strength in STRENGTH.items()]
    parts += [predict("pgd", eps, slope * eps) for eps in GRID[:-1]]
    parts.append(predict("apgd", EPS, 1.1 * slope * EPS))
    return pd.concat(parts, ignore_index=True)


def make_minimum_eps(table: pd.DataFrame) -> pd.DataFrame:
    """minimum_eps.csv for a third of the images: from 1/255 to 64/255, every seventh not found."""
    clean = table[table["attack"] == "none"].iloc[::3]
    wrong = (clean["label"] != clean["prediction"]).to_numpy()
    eps = np.where(wrong, 0.0, np.linspace(1, 64, len(clean)) / 255)
    found = (np.arange(len(clean)) % 7 != 6) | wrong
    return clean[["path", "label"]].assign(
        eps=np.where(found, eps, 64 / 255), found=found.astype(int)
    )


def make_calibration(table: pd.DataFrame) -> pd.DataFrame:
    """calibration.csv: other images that the model predicts as those of the table."""
    eps = {attack: EPS if attack != CLEAN else 0.0 for attack in CALIBRATION_ATTACKS}
    rows_ = table[table["eps"] == table["attack"].map(eps)]
    return rows_.assign(path="val/" + rows_["path"], group="val " + rows_["group"])


def make_corruptions(table: pd.DataFrame) -> pd.DataFrame:
    """corruptions.csv; no prediction without attack differs from the clean one, those under attack are those under PGD."""
    clean, attacked = (
        table[table["attack"] == "none"],
        table[(table["attack"] == "pgd") & (table["eps"] == EPS)],
    )
    cases = [
        clean.assign(corruption=name, severity=k) for name in ("blur", "glare") for k in (1, 2, 3)
    ]
    cases += [attacked.assign(corruption=name, severity=2) for name in ("blur", "glare")]
    cases.append(clean.assign(corruption="spatial", severity=1, attack="grid"))
    return pd.concat(cases, ignore_index=True)[list(TABLES["corruptions"])]


def make_gradients(table: pd.DataFrame) -> pd.DataFrame:
    """gradients.csv: shares from 0.2 to 0.4."""
    clean = table[table["attack"] == "none"]
    return clean[["path", "label"]].assign(central_share=np.linspace(0.2, 0.4, len(clean)))


def make_transfer(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the transfer attacks: those of PGD."""
    rows = table[(table["attack"] == "pgd") & (table["eps"] == EPS)]
    return pd.concat([rows.assign(attack=attack) for attack in ("transfer", "universal_transfer")])


def make_extras(folder: Path, table: pd.DataFrame) -> None:
    """What attack_eval writes in addition to predictions.csv and the examples."""
    write_predictions(make_calibration(table), folder, "calibration")
    write_table("minimum_eps", make_minimum_eps(table), folder)
    write_table("corruptions", make_corruptions(table), folder)
    write_table("gradients", make_gradients(table), folder)
    Image.new("RGB", (32, 32), (128, 128, 128)).save(folder / "universal.png")
    (folder / "ensemble.json").write_text(json.dumps(ENSEMBLE))
    (folder / "model.json").write_text(json.dumps(DESCRIPTION))
    checks = [
        grade("D2", 0.0, 16, fail=0),
        grade("D5", 0.05, 16, warn=0.01, fail=0.1),
        grade("D12", math.nan, 0, fail=0.05),
    ]
    (folder / "diagnostics.json").write_text(json.dumps([asdict(check) for check in checks]))


def make_training(epochs=12, peak=0.75, robust=0.1) -> pd.DataFrame:
    """A training curve that ends at validation accuracies of ``peak`` (clean) and ``robust`` (under attack)."""
    t = np.arange(1, epochs + 1) / epochs
    rise = 0.4 + (peak - 0.4) * (1 - np.exp(-4 * t))
    curve = pd.DataFrame({"epoch": np.arange(1, epochs + 1), "lr": 0.05 * (1 - t), "eps": EPS})
    curve = curve.assign(
        train_loss=1.1 - 0.8 * t,
        train_accuracy=np.minimum(1, rise + 0.15 * t),
        val_loss=1.1 - 0.4 * t,
    )
    curve = curve.assign(
        val_clean_accuracy=rise,
        val_balanced_accuracy=rise - 0.02,
        val_robust_loss=1.2 + 2 * (0.5 - robust) * t,
    )
    curve["val_robust_accuracy"] = 0.35 + (robust - 0.35) * t
    curve["chosen"] = (curve["epoch"] == epochs - 1).astype(int)
    return curve


def make_examples(folder: Path, classes=CLASSES, size=64, count=3, seed=0) -> None:
    """PNG pairs and examples.csv."""
    rng, folder, table = np.random.default_rng(seed), Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        original = make_image(rng, size)
        perturbation = rng.choice([-8, 8], original.shape)
        names = f"{i}_original.png", f"{i}_adversarial.png"
        Image.fromarray(original).save(folder / names[0])
        Image.fromarray(np.clip(original.astype(int) + perturbation, 0, 255).astype(np.uint8)).save(
            folder / names[1]
        )
        for model in MODELS:
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(
                folder / gradient_file(names[0], model)
            )
        label, wrong = classes[i % len(classes)], classes[(i + 1) % len(classes)]
        table.append((f"{label}/{i:04d}.jpg", "pgd", EPS, label, label, 0.83, wrong, 0.97, *names))
    write_examples(pd.DataFrame(table, columns=list(EXAMPLE_COLUMNS)), folder)


def make_image(rng: np.random.Generator, size: int) -> np.ndarray:
    """uint8 (size, size, 3): a reddish disk."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    disk = np.exp(-((x - rng.normal(0, 0.2)) ** 2 + (y - rng.normal(0, 0.2)) ** 2) * 3)[..., None]
    color = np.array([210, 120, 110]) * disk + np.array([90, 40, 40]) * (1 - disk)
    return np.clip(color + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def make_project(
    root: Path, *, models=("clean", "adv"), n=120, size=64, synthetic=True, **options
) -> Path:
    """Everything that `python -m stages.evaluate` reads, except params.yaml."""
    rng, root = np.random.default_rng(1), Path(root)
    classes = options.get("classes", CLASSES)
    test = make_table("clean", n, **options).query("attack == 'none'")
    others = [
        (f"others/{i}.jpg", f"p{i}", classes[i % len(classes)], "train" if i % 7 else "val")
        for i in range(42)
    ]
    manifest = pd.concat(
        [
            test[["path", "group", "label"]].assign(split="test"),
            pd.DataFrame(others, columns=["path", "group", "label", "split"]),
        ]
    ).sort_values("path")
    processed = root / "data/processed"
    processed.mkdir(parents=True)
    originals = manifest.assign(sha256="0" * 64, width=800, height=600, stain_guess="green filter")
    originals.to_csv(processed / "manifest.csv", index=False)
    np.save(
        processed / "images.npy", np.stack([make_image(rng, size) for _ in range(len(manifest))])
    )
    rejected = pd.DataFrame(
        {"path": ["Type_1/broken <b>.jpg"], "reason": ["truncated file (81 % of its rows)"]}
    )
    rejected.to_csv(processed / "rejected.csv", index=False)
    (root / "metrics").mkdir()
    (root / "metrics/data.json").write_text(json.dumps(DATA | {"synthetic": synthetic}))
    (root / "plots").mkdir()
    for sheet in ("rejected", "duplicates", "crops"):
        Image.new("RGB", (8, 8)).save(root / f"plots/{sheet}.png")
    for model, peak, robust in (("clean", 0.78, 0.02), ("adv", 0.66, 0.45)):
        if model in models:
            folder, table = root / f"data/predictions/{model}", make_table(model, n, **options)
            write_predictions(table, folder)
            make_extras(folder, table)
            if model == "adv":
                write_transfer(
                    pd.concat([make_transfer(table).assign(target=name) for name in models]), folder
                )
            make_examples(root / f"data/predictions/{model}/examples", classes, size)
            make_training(peak=peak, robust=robust).to_csv(
                root / f"plots/training_{model}.csv", index=False
            )
    return root
