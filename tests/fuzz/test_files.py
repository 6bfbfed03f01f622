"""Every file that a stage reads, damaged at random: read, or refused in one line that names it.

No other exception may escape. FUZZ_FILES is the number of damaged files of each kind; see
docs/reliability.md.
"""

import hashlib
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from stages.core.dataset import IMAGES, MANIFEST, load_dataset
from stages.core.errors import InputError
from stages.core.files import read_csv, write_csv
from stages.core.params_file import load_params
from stages.core.predictions import PREDICTIONS, validate
from stages.core.tables import DESCRIPTOR, read_table, write_tables
from stages.models import classifier
from stages.models.classifier import Classifier
from stages.models.weights import create_model
from stages.photographs.listing import list_images
from tests.helpers.image_files import data_params, write_files
from tests.helpers.mutation import mutate
from tests.helpers.params import write_params
from tests.helpers.prediction_tables import make_table
from tests.helpers.training_runs import checkpoint_in

COUNT = int(os.environ.get("FUZZ_FILES", "100"))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A folder with one valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    write_csv(
        folder / "table.csv", pd.DataFrame({"path": ["1", "NA", 'a,"b\n'], "eps": [0.0, 0.1, 1e-9]})
    )
    write_tables(folder, [(PREDICTIONS, make_table("clean", 4))])
    write_params(folder / "params.yaml")
    rows = "".join(f"{'ab'[n % 2]}/{n}.jpg,p{n}\n" for n in range(4))
    (folder / "patients.csv").write_text("path,patient\n" + rows)
    groups = [
        f"{'ab'[n % 2]}/{n}.jpg,{'ab'[n % 2]},g{n},{('train', 'val', 'test')[n % 3]},{n}\n"
        for n in range(6)
    ]
    (folder / MANIFEST).write_text("path,label,group,split,sha256\n" + "".join(groups))
    np.save(folder / IMAGES, np.zeros((6, 4, 4, 3), np.uint8))
    model = new_model()
    classifier.save(folder / "m.safetensors", model)
    torch.save(model.backbone.state_dict(), folder / "w.pth")
    state = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
    safetensors.torch.save_file(state, folder / "w.safetensors")
    checkpoint_in(folder / "run").save({"weights": torch.arange(1000.0), "history": [{"epoch": 1}]})
    return folder


def new_model(weights="none", sha256="none") -> Classifier:
    return create_model("squeezenet1_1", ("a", "b"), 64, str(weights), sha256, 0)


def model_from(file) -> Classifier:
    return new_model(file, hashlib.sha256(file.read_bytes()).hexdigest())


def list_with_patients(file):
    source = file.parent / "source"
    if not source.exists():
        write_files(
            source,
            dict.fromkeys((f"{'ab'[n % 2]}/{n}.jpg" for n in range(4)), b"x")
            | {"fixes.csv": b"path,label\n"},
        )
    shutil.copy(file, source / "patients.csv")
    return list_images(data_params(source, groups="patients.csv", label_fixes="fixes.csv"))


def load_with(file, other):
    """The dataset of a damaged file and an intact one."""
    shutil.copy(other, file.parent)
    return load_dataset(file.parent)


def predictions_with(file, other):
    shutil.copy(other, file.parent)
    return validate(read_table(file.parent, "predictions"), str(file.parent))


READERS = {
    "table.csv": lambda file, valid: read_csv(file, "stage", ("path",)),
    "predictions.csv": lambda file, valid: predictions_with(file, valid / DESCRIPTOR),
    DESCRIPTOR: lambda file, valid: predictions_with(file, valid / "predictions.csv"),
    "params.yaml": lambda file, valid: load_params(file),
    "patients.csv": lambda file, valid: list_with_patients(file),
    MANIFEST: lambda file, valid: load_with(file, valid / IMAGES),
    IMAGES: lambda file, valid: load_with(file, valid / MANIFEST),
    "m.safetensors": lambda file, valid: classifier.load(file),
    "w.pth": lambda file, valid: model_from(file),
    "w.safetensors": lambda file, valid: model_from(file),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_file_is_read_or_refused_by_name(name, valid, tmp_path):
    rng, file, refused = np.random.default_rng(0), tmp_path / name, []
    content = (valid / name).read_bytes()
    for _ in range(COUNT):
        # Half of the damage to the first bytes, where a file of weights says what it holds.
        start = rng.choice((len(content), 3000))
        file.write_bytes(mutate(content[:start], rng) + content[start:])
        try:
            READERS[name](file, valid)
        except InputError as error:
            refused.append(str(error))
    assert refused
    assert [text for text in refused if str(tmp_path) not in text and "data." not in text] == [], (
        "the file isn't named"
    )


def test_damaged_checkpoint_is_never_used(valid, tmp_path, capfd):
    """Either the very state that was saved, or none."""
    rng, checkpoint = np.random.default_rng(0), checkpoint_in(tmp_path / "run")
    content = (valid / "run/last.pt").read_bytes()
    for _ in range(COUNT):
        checkpoint.file.write_bytes(mutate(content, rng))
        state = checkpoint.load()
        assert state is None or torch.equal(state["weights"], torch.arange(1000.0))
        assert state is None or state["history"] == [{"epoch": 1}]
