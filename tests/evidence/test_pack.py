"""Packs from the pipeline's files to verify: what holds, what is refuted, what is refused."""

import json
import shutil
from pathlib import Path

import foolbox
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from PIL import Image

from stages import attack_eval, pack, verify
from stages.core.errors import InputError
from stages.core.paths import PROCESSED, weights_path
from stages.core.predictions import is_correct, within, worst_case
from stages.evidence.pack import IMAGES, MANIFEST, SUMS, TENSORS, pixels_sha256, read_pack, sha256
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from tests.helpers.datasets import toy_dataset, write_dataset
from tests.helpers.params import write_params

SIZE, SMALL = 32, {
    "attack.eps": 8 / 255,
    "attack.eps_grid": [8 / 255],
    "attack_eval.noise_draws": 1,
    "attack_eval.bim_steps": 1,
    "attack_eval.curve_steps": 1,
    "attack_eval.subset": 4,
    "attack_eval.aa_steps": 2,
    "attack_eval.aa_queries": 2,
    "attack_eval.min_eps_rounds": 1,
    "attack_eval.examples": 1,
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.tracking": False,
}  # fmt: skip


def train(dataset) -> Classifier:
    torch.manual_seed(0)
    model = Classifier("shufflenet_v2_x0_5", dataset.classes, SIZE)
    split = DatasetSplit.from_dataset(dataset, "train")
    x, y = split.load(np.arange(len(split)), torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A project with a pack of a model that attacks change, and predictions.csv."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        write_params(Path("params.yaml"), **SMALL)
        dataset = toy_dataset(size=SIZE)
        write_dataset(dataset, PROCESSED)
        classifier.save(weights_path("clean"), train(dataset))
        Path("metrics").mkdir()
        Path("metrics/data.json").write_text('{"synthetic": true}')
        rows = attack_eval.main("clean")
        pack.main("clean")
    return folder, rows


@pytest.fixture
def folder(made, monkeypatch, tmp_path) -> Path:
    """A copy of the pack; the current folder is the project."""
    monkeypatch.chdir(made[0])
    return Path(shutil.copytree("data/packs/clean", tmp_path / "pack"))


def seal(folder: Path) -> None:
    """SHA256SUMS anew: by whom a pack was changed on purpose."""
    names = (MANIFEST, IMAGES, TENSORS)
    (folder / SUMS).write_text("".join(f"{sha256(folder / n)}  {n}\n" for n in names))


def edit_manifest(folder: Path, **changes) -> None:
    content = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(content))
    seal(folder)


def edit_rows(folder: Path, change) -> None:
    change(pd.read_csv(folder / IMAGES)).to_csv(folder / IMAGES, index=False)
    seal(folder)


def edit_tensors(folder: Path, change) -> None:
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    (folder / TENSORS).write_bytes(safetensors.numpy.save(change(tensors)))
    seal(folder)


def failures(capsys, folder: Path) -> list[str]:
    """The claims that fail."""
    with pytest.raises(InputError, match=r"expected 8 claims that hold, got \d"):
        verify.main(folder)
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("FAILS: ") for line in lines if line.startswith("FAILS: ")]


def test_pack_of_a_run_holds_and_says_what_the_run_said(made, folder, capsys):
    assert all(claim.holds for claim in verify.main(folder))
    assert "never prove it" in capsys.readouterr().out
    manifest, rows = read_pack(folder).manifest, made[1]
    worst = is_correct(worst_case(within(rows, 8 / 255)))
    assert manifest.clean_correct == is_correct(rows[rows["attack"] == "none"]).sum()
    assert manifest.clean_correct - manifest.robust_correct > 5, "something to verify"
    assert 0 <= manifest.robust_correct - worst.sum() <= 1, "rounding may save an image"


def test_foolbox_agrees_on_every_image(folder):
    opened = read_pack(folder)
    n, classes = len(opened.rows), list(opened.manifest.classes)
    levels = opened.images(0, n).transpose(0, 3, 1, 2) + opened.perturbations(0, n)
    model = foolbox.PyTorchModel(classifier.load(weights_path("clean")), bounds=(0, 1))
    y = torch.tensor([classes.index(label) for label in opened.rows["label"]])
    accuracy = foolbox.accuracy(model, torch.from_numpy(levels).float() / 255, y)
    assert round(accuracy * n) == opened.manifest.robust_correct


@pytest.mark.parametrize("name", [MANIFEST, IMAGES, TENSORS])
def test_tampered_byte_is_refused_with_the_name_of_its_file(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: expected the SHA-256 in SHA256SUMS"):
        verify.main(folder)


def test_swapped_labels_are_refuted(folder, capsys):
    edit_rows(folder, lambda r: r.assign(label=r["label"].replace({"a": "b", "b": "a"})))
    found = failures(capsys, folder)
    assert any(text.startswith("clean accuracy") for text in found)
    assert any("are adversarial examples" in text for text in found)


def test_smaller_eps_is_refuted(folder, capsys):
    edit_manifest(folder, eps=4 / 255)
    assert [text.split(":")[0] for text in failures(capsys, folder)] == [
        "perturbations are within L∞, ε = 4/255"
    ]


def test_weaker_perturbations_are_refuted(folder, capsys):
    edit_tensors(folder, lambda tensors: tensors | {"perturbations": tensors["perturbations"] * 0})
    found = failures(capsys, folder)
    assert [text.split()[0] for text in found] == ["predictions", "the", "robust"]


def test_better_claims_are_refuted(folder, capsys):
    manifest = read_pack(folder).manifest
    edit_manifest(folder, clean_correct=manifest.images, robust_correct=manifest.images)
    assert [text.split(":")[0] for text in failures(capsys, folder)] == [
        f"clean accuracy 100.0%, {manifest.images} of {manifest.images}",
        f"robust accuracy at most 100.0%, {manifest.images} of {manifest.images}",
    ]


def test_other_images_are_refuted(folder, capsys):
    edit_tensors(folder, lambda tensors: tensors | {"images": 255 - tensors["images"]})
    assert any(text.endswith("with other pixels") for text in failures(capsys, folder))


def test_other_model_is_refused_by_name(folder, tmp_path):
    other = tmp_path / "other.safetensors"
    classifier.save(other, Classifier("shufflenet_v2_x0_5", ("a", "b", "c"), SIZE))
    with pytest.raises(InputError, match=r"other\.safetensors: expected the model of the pack"):
        verify.main(folder, model=other)


REFUSED = {
    "another version": (lambda f: edit_manifest(f, version=2), r"manifest\.json: .* version"),
    "no image": (lambda f: edit_manifest(f, images=0), r"manifest\.json: .* images"),
    "implausible budget": (lambda f: edit_manifest(f, eps=8.0), "from 0.0001 to 0.5"),
    "a name that steers terminals": (
        lambda f: edit_manifest(f, classes=["a\x1b[2J", "b"]),
        "can be printed",
    ),
    "missing file": (lambda f: (f / IMAGES).unlink(), "expected the files manifest.json, "),
    "further file": (lambda f: (f / "model.pkl").touch(), r"got .*model\.pkl"),
    "link out of the folder": (
        lambda f: ((f / IMAGES).unlink(), (f / IMAGES).symlink_to("/etc/hostname")),
        r"images\.csv: expected a file, got a link",
    ),
    "10 GB": (
        lambda f: (f / TENSORS).open("r+b").truncate(10 * 2**30),
        r"tensors\.safetensors: expected at most 4,294,967,296 bytes",
    ),
    "too few rows": (lambda f: edit_rows(f, lambda r: r[1:]), "24 rows, got 23"),
    "an unknown class": (
        lambda f: edit_rows(f, lambda r: r.replace("a", "z")),
        "'z'",
    ),
    "a path for a digest": (
        lambda f: edit_rows(f, lambda r: r.assign(file_sha256="../../x")),
        r"file_sha256: expected .* got '\.\./\.\./x'",
    ),
    "another shape": (
        lambda f: edit_tensors(f, lambda t: t | {"images": t["images"][:, :16]}),
        r"tensors\.safetensors: expected .* got images: U8 of shape \(24, 16, 32, 3\)",
    ),
    "floats": (
        lambda f: edit_tensors(f, lambda t: t | {"images": t["images"].astype(np.float32)}),
        r"got images: F32",
    ),
    "a pickle": (
        lambda f: ((f / TENSORS).write_bytes(b"\x80\x04cos\nsystem\n."), seal(f)),
        r"tensors\.safetensors: expected a safetensors file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_pack_is_refused_in_one_line(folder, case):
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        verify.main(folder)
    assert "\n" not in str(error.value)


def test_photographs_are_found_by_their_digests_and_only_by_them(folder, tmp_path):
    photographs, rng = tmp_path / "photographs", np.random.default_rng(0)
    (photographs / "any").mkdir(parents=True)
    for i in range(24):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(photographs / f"any/{i}.png")
    files = sorted(photographs.rglob("*.png"))

    digests = {
        "file_sha256": [sha256(file) for file in files],
        "pixels_sha256": [pixels_sha256(np.asarray(Image.open(file))) for file in files],
    }
    edit_rows(folder, lambda rows: rows.assign(**digests))
    edit_tensors(folder, lambda tensors: {"perturbations": tensors["perturbations"]})
    opened = read_pack(folder)
    with pytest.raises(InputError, match="--images: expected a folder"):
        verify.loader(opened, None)
    images = verify.loader(opened, photographs)(0, 24)
    assert list(opened.rows["pixels_sha256"]) == [pixels_sha256(image) for image in images]
    files[0].unlink()
    with pytest.raises(InputError, match="the 24 photographs of the pack, got 23"):
        verify.loader(opened, photographs)


def test_photographs_stay_at_home_unless_they_are_synthetic_or_asked_for(
    made, monkeypatch, tmp_path
):
    monkeypatch.chdir(made[0])
    monkeypatch.setattr(
        "stages.pack.read_json",
        lambda *_: {"synthetic": False, "sha256": sha256(weights_path("clean"))},
    )
    made_pack = pack.main("clean", out=tmp_path / "without")
    assert not made_pack.has_images
    assert "path" not in made_pack.rows
    assert pack.main("clean", images=True, out=tmp_path / "with").has_images


def test_predictions_of_another_model_are_refused(made, monkeypatch):
    monkeypatch.chdir(made[0])
    paths = pd.Series(["a/000.jpg"])
    with pytest.raises(
        InputError, match="data/predictions/clean: expected predictions of the model"
    ):
        pack.misclassified_under_attack("clean", "0" * 64, paths, 8 / 255)
    with pytest.raises(InputError, match="expected predictions of the test images"):
        pack.misclassified_under_attack("clean", sha256(weights_path("clean")), paths, 8 / 255)
