"""The bundled sample: it can be redrawn, and its layout and labels follow its rules.

Color alone doesn't predict the labels. Needs numpy, Pillow and scikit-learn only.
"""

import csv
import importlib.util
import io
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.helpers.repository import ROOT

DATA = ROOT / "data"
SAMPLE = DATA / "sample"

# A script beside the data, not a package: load it by its path.
_spec = importlib.util.spec_from_file_location("draw_sample", DATA / "draw_sample.py")
draw_sample = importlib.util.module_from_spec(_spec)
sys.modules["draw_sample"] = draw_sample
_spec.loader.exec_module(draw_sample)

PLAN = draw_sample.plan()
DEFECTS = defaultdict(list)
for _defect in draw_sample.DEFECTS:
    DEFECTS[_defect.kind].append(_defect)


def read_table(name: str) -> list[dict[str, str]]:
    with (SAMPLE / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(n, 64, 64, 3) float32 in [0, 1], the images without defects, in the order of the plan."""
    images = [
        Image.open(SAMPLE / p.path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        for p in PLAN
    ]
    return np.stack([np.asarray(image, np.float32) / 255 for image in images])


@pytest.fixture(scope="module")
def anatomies() -> list[tuple[int, "draw_sample.Anatomy"]]:
    """(label, anatomy) of every drawn patient."""
    labels = {p.patient: p.label for p in PLAN}
    return [
        (label, draw_sample.anatomy_of(label, patient)) for patient, label in sorted(labels.items())
    ]


LABELS = np.array([p.label for p in PLAN])
PATIENTS = np.array([p.patient for p in PLAN])


@pytest.mark.parametrize("planned", PLAN[::150], ids=lambda p: p.path)
def test_redrawing_gives_committed_pixels(planned):
    """Decoded pixels, not bytes: libjpeg builds differ in the last digit."""
    content = draw_sample.draw_picture(planned)
    redrawn = np.asarray(Image.open(io.BytesIO(content)), np.float32)
    committed = np.asarray(Image.open(SAMPLE / planned.path), np.float32)
    assert redrawn.shape == committed.shape == (draw_sample.SIZE, draw_sample.SIZE, 3)
    assert np.abs(redrawn - committed).mean() < 2


def test_files_are_those_of_plan_and_defects():
    expected = {p.path for p in PLAN} | {d.path for d in draw_sample.DEFECTS}
    assert len(expected) == len(PLAN) + len(draw_sample.DEFECTS)
    assert {p.relative_to(SAMPLE).as_posix() for p in SAMPLE.rglob("*.jpg")} == expected


def test_size_and_class_counts():
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*") if p.is_file()) <= 10e6
    assert 1_400 <= len(PLAN) <= 1_600
    first, second, third = (Counter(LABELS)[k] for k in range(3))
    assert second > third > first > 0.2 * len(PLAN)


def test_train_folder_has_one_image_per_patient():
    train = [p.patient for p in PLAN if p.path.startswith("train/")]
    assert len(train) == len(set(train))


def test_some_test_patients_are_also_in_additional():
    additional = {p.patient for p in PLAN if p.path.startswith("additional")}
    shared = [p for p in PLAN if p.path.startswith("test/") and p.patient in additional]
    assert len(shared) == draw_sample.TEST_KNOWN


def test_solution_has_label_of_every_test_image():
    expected = {Path(p.path).name: p.label for p in PLAN if p.path.startswith("test/")}
    rows = read_table("solution_stg1_release.csv")
    assert list(rows[0]) == ["image_name", *draw_sample.TYPES]
    one_hot = {r["image_name"]: [int(r[t]) for t in draw_sample.TYPES] for r in rows}
    assert all(sorted(row) == [0, 0, 1] for row in one_hot.values())
    assert {name: row.index(1) for name, row in one_hot.items()} == expected


def test_patients_table_covers_every_image():
    table = {r["path"]: int(r["patient"]) for r in read_table("patients.csv")}
    assert {p.path: p.patient for p in PLAN}.items() <= table.items()
    assert set(table) - {p.path for p in PLAN} == {d.path for d in draw_sample.DEFECTS if d.source}


def test_label_fixes_of_kaggle_dataset_name_no_sample_image():
    corrected = {
        row.split(",")[0] for row in (DATA / "label_fixes.csv").read_text().splitlines()[1:]
    }
    assert corrected
    assert not corrected & {p.path for p in PLAN}


def test_file_names_recur_in_train_and_additional():
    train = {Path(p.path).name: p for p in PLAN if p.path.startswith("train/")}
    additional = {Path(p.path).name: p for p in PLAN if p.path.startswith("additional")}
    shared = train.keys() & additional.keys()
    assert len(shared) > 0.9 * len(train)
    assert sum(train[name].patient != additional[name].patient for name in shared) > 0.9 * len(
        shared
    )


def test_invalid_files_cannot_be_decoded():
    for defect in DEFECTS["empty"]:
        assert (SAMPLE / defect.path).stat().st_size == 0
    for defect in DEFECTS["text"]:
        with pytest.raises(UnidentifiedImageError):
            Image.open(SAMPLE / defect.path)
    for defect in DEFECTS["truncated"]:
        with pytest.raises(OSError, match="truncated"):
            Image.open(SAMPLE / defect.path).load()


def test_exif_rotated_images_are_stored_rotated():
    for defect in DEFECTS["exif_rotated"]:
        stored = Image.open(SAMPLE / defect.path)
        source = np.asarray(
            Image.open(SAMPLE / draw_sample.source_of(defect, PLAN).path), np.float32
        )
        upright = np.asarray(ImageOps.exif_transpose(stored), np.float32)
        assert (
            np.abs(upright - source).mean()
            < 4
            < np.abs(np.asarray(stored, np.float32) - source).mean()
        )


def test_duplicates_match_their_source():
    for defect in DEFECTS["exact_duplicate"]:
        source = SAMPLE / draw_sample.source_of(defect, PLAN).path
        assert (SAMPLE / defect.path).read_bytes() == source.read_bytes()
    for defect in DEFECTS["near_duplicate"]:
        pair = [SAMPLE / defect.path, SAMPLE / draw_sample.source_of(defect, PLAN).path]
        a, b = (
            np.asarray(Image.open(p).convert("L").resize((32, 32)), np.float32).ravel()
            for p in pair
        )
        assert pair[0].read_bytes() != pair[1].read_bytes()
        assert np.corrcoef(a, b)[0, 1] > 0.99


def test_label_follows_from_geometry(anatomies):
    for label, anatomy in anatomies:
        s = anatomy.scj
        rules = (
            s.min() > 1.2,
            s.min() >= 0.5 and (s < 0.9).mean() >= 0.35,
            (s < 0.25).mean() >= 0.40,
        )
        assert rules == tuple(k == label for k in range(3))


@pytest.mark.parametrize("quantity", ["os_radius", "os_aspect", "squamous", "columnar"])
def test_anatomy_except_junction_is_independent_of_label(anatomies, quantity):
    """Class means differ by no more than chance: |z| < 4 for each pair and component."""
    values = np.array([np.atleast_1d(getattr(a, quantity)) for _, a in anatomies])
    labels = np.array([label for label, _ in anatomies])
    groups = [values[labels == k] for k in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        error = np.sqrt(groups[a].var(0) / len(groups[a]) + groups[b].var(0) / len(groups[b]))
        assert (np.abs(groups[a].mean(0) - groups[b].mean(0)) < 4 * error).all()


def mean_accuracy(model, x: np.ndarray, splits) -> float:
    """Mean accuracy over (train, test) index pairs."""
    return float(np.mean([model.fit(x[a], LABELS[a]).score(x[b], LABELS[b]) for a, b in splits]))


def test_color_alone_does_not_predict_label(pixels):
    """Logistic regression on statistics and a coarse histogram of the colors; held-out patients."""
    flat = pixels.reshape(len(pixels), -1, 3)
    quantiles = np.quantile(flat, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95), axis=1)
    bins = (np.minimum(flat * 4, 3).astype(int) * (16, 4, 1)).sum(2)
    histogram = np.stack([np.bincount(row, minlength=64) for row in bins]) / bins.shape[1]
    features = np.concatenate([flat.mean(1), flat.std(1), *quantiles, histogram], axis=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    splits = GroupShuffleSplit(5, test_size=0.2, random_state=0).split(features, groups=PATIENTS)
    assert mean_accuracy(model, features, splits) < 0.60


def test_image_level_split_overestimates_accuracy(pixels):
    """1-nearest neighbor on centered, normalized gray images of 32 pixels."""
    gray = pixels.mean(3).reshape(len(pixels), 32, 2, 32, 2).mean((2, 4)).reshape(len(pixels), -1)
    gray -= gray.mean(1, keepdims=True)
    gray /= np.linalg.norm(gray, axis=1, keepdims=True)
    model = KNeighborsClassifier(1)
    by_patient = mean_accuracy(
        model,
        gray,
        GroupShuffleSplit(5, test_size=0.2, random_state=0).split(gray, groups=PATIENTS),
    )
    by_image = mean_accuracy(
        model, gray, ShuffleSplit(5, test_size=0.2, random_state=0).split(gray)
    )
    assert by_image > by_patient + 0.05
