"""The stage preprocess as a whole: what it writes is consistent, repeatable byte for byte, and never incomplete."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from stages import preprocess
from stages.core.dataset import SPLITS, load_dataset
from stages.core.errors import InputError
from stages.core.files import FileFormatError
from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.kaggle import COUNTS, kaggle_names
from tests.helpers.preprocessing import OUTPUTS, SHEETS, make_raw_images, read_outputs, set_params
from tests.helpers.repository import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_raw_images(tmp_path / "raw")
    set_params(tmp_path)
    return tmp_path


def read_table(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_outputs_metrics_and_summary_are_consistent(project, capsys):
    metrics = preprocess.main()
    summary = capsys.readouterr().out.splitlines()
    assert summary[0] == "55 images in 48 groups: 27 a, 28 b"
    assert summary[2].startswith(
        "rejected of 58 files: 1 empty, 1 truncated, 1 copy; see data/processed/rejected.csv"
    )
    assert summary[3].endswith(
        "crops: 55 square; official test images: 0 found, 0 used; ignored files: 1"
    )
    dataset = load_dataset("data/processed")
    rejected = {row["path"]: row["reason"] for row in read_table("data/processed/rejected.csv")}
    assert rejected.pop("b/truncated.jpg").startswith("truncated: ")
    assert rejected == {"a/copy.jpg": "copy: of a/02.jpg", "a/empty.jpg": "empty: 0 bytes"}
    assert dataset.classes == ("a", "b")
    assert dataset.images.shape == (55, 16, 16, 3)
    files = sum(path.is_file() for path in Path("raw").rglob("*"))
    assert metrics["images"] + metrics["rejected"]["total"] + metrics["other_files"] == files == 59
    assert metrics["duplicates"] == {
        "copies": 2,
        "near": 12,
        "near_links": 6,
        "conflicting_labels": 3,
    }
    assert metrics["groups"]["total"] == 48
    assert json.loads(Path("metrics/data.json").read_text()) == metrics
    assert (
        Path("metrics/data.json").read_text()
        == json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    )
    assert sum(part["images"] for part in metrics["splits"].values()) == 55
    assert {name: len(dataset.split_rows(name)) for name in SPLITS} == {
        n: metrics["splits"][n]["images"] for n in SPLITS
    }
    assert (dataset.manifest.groupby("group")["split"].nunique() == 1).all()
    assert dataset.manifest["path"].is_monotonic_increasing
    by_path = dataset.manifest.set_index("path")
    assert set(by_path.index[by_path["disputed"] == 1]) == {
        "a/04.jpg",
        "a/near4.jpg",
        "b/conflict.jpg",
    }
    assert by_path.loc["a/near0.jpg", "group"] == "a/00.jpg"
    assert by_path.loc["b/conflict.jpg", "group"] == "a/04.jpg"
    row = dataset.manifest.index[dataset.manifest["path"] == "b/07.jpg"][0]
    expected = make_image(7, 80, 64).resize((16, 16), box=(8, 0, 72, 64))
    assert abs(dataset.images[row].astype(int) - expected).max() < 12
    assert all(Path(name).stat().st_size < 150_000 for name in SHEETS)
    assert b"\r" not in Path("data/processed/manifest.csv").read_bytes()


def test_outputs_are_byte_identical_with_cache_and_workers(project, monkeypatch):
    preprocess.main()
    first = read_outputs()
    preprocess.main()
    assert read_outputs() == first, "from the cache"
    set_params(project, workers=2)
    monkeypatch.setenv("DVC_ROOT", str(project / "elsewhere"))
    preprocess.main()
    assert read_outputs() == first, "two workers, an empty cache"
    assert (project / "elsewhere/.cache/preprocess").is_dir()


def test_label_conflicts_are_dropped_on_demand(project):
    set_params(project, conflicting_labels="drop")
    assert preprocess.main()["rejected"]["reasons"]["conflict"] == 3, (
        "the two copies and a near-duplicate"
    )


def test_class_lost_to_conflicts_is_explained_in_the_table_that_the_error_names(project):
    originals = sorted(Path("raw/a").glob("??.jpg"))[:6]
    write_files(Path("raw"), {f"c/{n}.jpg": file.read_bytes() for n, file in enumerate(originals)})
    set_params(project, conflicting_labels="drop")
    with pytest.raises(InputError, match=r"rejected\.csv has the reasons"):
        preprocess.main()
    rejected = Path("data/processed/rejected.csv").read_text(encoding="utf-8")
    assert all(f"c/{n}.jpg" in rejected for n in range(len(originals)))


def test_official_test_patients_are_excluded_from_training(project):
    images = {f"test/test/{n}.jpg": encode(make_image(n, 80, 64), quality=60) for n in range(10)}
    solution = "image_name,a,b\n" + "".join(f"{n}.jpg,{1 - n % 2},{n % 2}\n" for n in range(10))
    write_files(Path("raw"), images | {"solution_stg1_release.csv": solution.encode()})
    assert preprocess.main()["official_test"] == {"found": 10, "used": 0}
    set_params(project, test="official")
    metrics = preprocess.main()
    assert metrics["official_test"] == {"found": 10, "used": 10}
    assert metrics["splits"]["test"]["images"] == 10
    assert metrics["rejected"]["reasons"]["leak"] == 10 + 6 + 1, (
        "the images, near-duplicates, the copy with another label"
    )
    manifest = load_dataset("data/processed").manifest
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


def test_cervix_crop_with_table_as_source(project):
    rows = "".join(
        f"{path.relative_to('raw')},{path.parent.name}\n"
        for path in sorted(Path("raw").rglob("[0-9]*.jpg"))
    )
    Path("raw/some.csv").write_text("path,label\n" + rows)
    set_params(project, table="some.csv", crop="cervix")
    metrics = preprocess.main()
    assert metrics["images"] == 48
    assert sum(metrics["crops"].values()) == 48
    assert set(metrics["crops"]) <= {"cervix", "fallback"}


def test_table_with_patients_and_given_test_split(project):
    """Images of a patient are one group; the given test split is kept; other images of its patients are excluded."""
    paths = sorted(path.relative_to("raw").as_posix() for path in Path("raw").rglob("[0-9]*.jpg"))
    rows = []
    for path in paths:
        number = int(Path(path).stem)
        rows.append(
            f"{path},{path[0]},p{number // 4},{'test' if number >= 40 or number == 36 else ''}"
        )
    Path("raw/all.csv").write_text("path,label,group,split\n" + "\n".join(rows) + "\n")
    set_params(project, table="all.csv")
    metrics = preprocess.main()
    assert metrics["splits"]["test"]["images"] == 9
    assert metrics["rejected"]["reasons"] == {"leak": 3}
    assert metrics["groups"]["images_with_known_patient"] == metrics["images"] == 45
    manifest = load_dataset("data/processed").manifest
    numbers = manifest["path"].str.extract(r"(\d+)\.jpg")[0].astype(int)
    assert set(numbers[manifest["split"] == "test"]) == {36, *range(40, 48)}
    assert (manifest.groupby(numbers // 4)["group"].nunique() == 1).all()
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


def test_too_many_invalid_files_stop_the_stage(project):
    write_files(Path("raw"), {f"a/bad{n}.jpg": b"x" for n in range(9)})
    message = (
        r"data\.max_rejected: expected at most 5\.0% invalid files, got .* 9 not an image, 1 empty"
    )
    with pytest.raises(InputError, match=message):
        preprocess.main()
    assert len(read_table("data/processed/rejected.csv")) == 11
    with pytest.raises(FileFormatError):
        load_dataset("data/processed")
    set_params(project, max_rejected=0.5)
    preprocess.main()


def test_class_without_valid_images_stops_the_stage(project):
    write_files(Path("raw"), {"c/1.jpg": b"", "c/2.jpg": b""})
    set_params(project, max_rejected=1)
    with pytest.raises(InputError, match="class c: expected valid images, got none"):
        preprocess.main()


def run_stage() -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "stages.preprocess"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_input_error_is_one_line_and_exit_status_1(project):
    set_params(project, source="nowhere")
    done = run_stage()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.source: nowhere: expected a folder of images, got nothing there"
    ]


@pytest.mark.slow
def test_sigkill_leaves_no_incomplete_dataset_and_no_workers(project):
    """Killed 12 times at random moments: a dataset that can be loaded afterwards is complete."""
    write_files(
        Path("raw"),
        {f"{'ab'[n % 2]}/more{n}.jpg": encode(make_image(100 + n, 300, 300)) for n in range(200)},
    )
    set_params(project, workers=2)
    started = time.monotonic()
    assert run_stage().returncode == 0
    duration, complete = time.monotonic() - started, read_outputs()
    rng = random.Random(0)  # noqa: S311
    for _ in range(12):
        for entry in Path(".cache").rglob("*.npz"):
            entry.unlink()
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.preprocess"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.1, 1.0) * duration)
        process.kill()
        process.wait()
        try:
            load_dataset("data/processed")
        except FileFormatError:
            pass
        else:
            assert read_outputs(OUTPUTS) == {name: complete[name] for name in OUTPUTS}
        deadline = time.monotonic() + 20
        while session_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not session_is_alive(process.pid)
    assert run_stage().returncode == 0
    assert read_outputs() == complete


def session_is_alive(session: int) -> bool:
    try:
        os.killpg(session, 0)  # sends no signal
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_whole_kaggle_dataset_with_small_images(tmp_path, monkeypatch):
    """The challenge's folders, counts, recurring file names, invalid files and label corrections."""
    monkeypatch.chdir(tmp_path)
    names = kaggle_names(
        {"train": "train/train/Type_{0}", "additional": "additional_Type_{0}_v2/Type_{0}"}
    )
    empty = {
        f"additional_Type_{k}_v2/Type_{k}/{n}.jpg": b""
        for k, n in ((1, "5893"), (2, "2845"), (2, "5892"))
    }
    truncated = {
        "additional_Type_1_v2/Type_1/3068.jpg": 0.78,
        "additional_Type_2_v2/Type_2/7.jpg": 0.75,
        "train/train/Type_1/1339.jpg": 0.55,
    }
    if not set(empty) | set(truncated) <= set(names):
        names = sorted(set(names[: -len(empty) - len(truncated)]) | set(empty) | set(truncated))
    for number, name in enumerate(names):
        content = encode(make_image(number, 48, 40), quality=80)
        write_files(
            Path("raw"),
            {name: empty.get(name, content[: int(truncated.get(name, 1) * len(content))])},
        )
    shutil.copy(ROOT / "data/label_fixes.csv", "raw")
    set_params(tmp_path, label_fixes="label_fixes.csv")
    metrics = preprocess.main()
    assert metrics["files"] == len(names)
    assert metrics["rejected"]["reasons"] == {"empty": 3, "truncated": 3}
    assert metrics["duplicates"]["copies"] == metrics["duplicates"]["near_links"] == 0
    assert metrics["label_fixes"]["applied"] == 3
    if os.environ.get("COLPOSCOPY_KAGGLE_LISTING"):
        assert metrics["files"] == 8215
        manifest = load_dataset("data/processed").manifest
        train = Counter(manifest[manifest["path"].str.startswith("train/")]["label"])
        assert train == {"Type_1": 252 - 1, "Type_2": 780, "Type_3": 449}, (
            "a truncated image is missing"
        )
        assert metrics["images"] == 8215 - 6
        assert sum(COUNTS["train"] + COUNTS["additional"]) == 8215


def test_annocerv_with_patients_from_file_names(tmp_path, monkeypatch):
    source = os.environ.get("COLPOSCOPY_ANNOCERV")
    if not source:
        pytest.skip("COLPOSCOPY_ANNOCERV names no folder with the AnnoCerv photographs")
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, source=source, group_pattern=r"(C\d+)Aceto")
    metrics = preprocess.main()
    assert metrics["files"] == 297
    assert metrics["groups"]["total"] == 95
    assert metrics["rejected"]["faulty"] == 0
    assert metrics["images"] + metrics["rejected"]["reasons"].get("copy", 0) == 297
