"""The stage preprocess as a whole: consistent, repeatable byte for byte, and never incomplete."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import preprocess
from stages.core.dataset import SPLITS, load_dataset
from stages.core.errors import InputError
from stages.core.files import FileFormatError
from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.kaggle import kaggle_names
from tests.helpers.preprocessing import OUTPUTS, SHEETS, make_raw_images, read_outputs, set_params
from tests.helpers.repository import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_raw_images(tmp_path / "raw")
    set_params(tmp_path)
    return tmp_path


def read_rejected() -> dict[str, str]:
    with Path("data/processed/rejected.csv").open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def load_manifest():
    """The manifest, whose groups are whole."""
    manifest = load_dataset("data/processed").manifest
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    return manifest


def test_outputs_metrics_and_summary_are_consistent(project, capsys):
    metrics = preprocess.main()
    summary, warnings = capsys.readouterr()
    assert summary.startswith("55 images in 48 groups: 27 a, 28 b\n")
    assert "rejected of 58 files: 1 empty, 1 truncated, 1 copy; see" in summary
    assert "left out: documents 1 (notes.txt)\n" in summary
    starts = ["warning: the patients of 55 of 55 images are", "warning: 3 images have duplicates"]
    for line, start in zip(warnings.splitlines(), starts, strict=True):
        assert line.startswith(start)
    assert read_rejected() == {
        "a/copy.jpg": "copy: of a/02.jpg",
        "a/empty.jpg": "empty: 0 bytes",
        "b/truncated.jpg": "truncated: the end of the pixels is missing",
    }
    files = sum(path.is_file() for path in Path("raw").rglob("*"))
    others = sum(metrics["other_files"].values())
    assert metrics["images"] + metrics["rejected"]["total"] + others == files == 59
    duplicates = {"copies": 2, "near": 0, "same_scene": 6, "conflicting_labels": 3}
    assert metrics["duplicates"] == duplicates
    text = Path("metrics/data.json").read_text()
    assert text == json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    dataset, manifest = load_dataset("data/processed"), load_manifest()
    assert dataset.classes == ("a", "b")
    assert dataset.images.shape == (55, 16, 16, 3)
    for name in SPLITS:
        assert len(dataset.split_rows(name)) == metrics["splits"][name]["images"]
    assert manifest["path"].is_monotonic_increasing
    disputed = manifest.loc[manifest["disputed"] == 1, "path"]
    assert disputed.tolist() == ["a/04.jpg", "a/near4.jpg", "b/conflict.jpg"]
    groups = dict(zip(manifest["path"], manifest["group"], strict=True))
    assert groups["a/near0.jpg"] == "a/00.jpg"
    assert groups["b/conflict.jpg"] == "a/04.jpg"
    row = list(groups).index("b/07.jpg")
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
    reasons = preprocess.main()["rejected"]["reasons"]
    assert reasons["conflict"] == 3, "the two copies and a near-duplicate"


def test_official_test_patients_are_excluded_from_training(project):
    images = {f"test/test/{n}.jpg": encode(make_image(n, 80, 64), quality=60) for n in range(10)}
    solution = "image_name,a,b\n" + "".join(f"{n}.jpg,{1 - n % 2},{n % 2}\n" for n in range(10))
    write_files(Path("raw"), images | {"solution_stg1_release.csv": solution.encode()})
    assert preprocess.main()["official_test"] == {"found": 10, "used": 0}
    set_params(project, test="official")
    metrics = preprocess.main()
    assert metrics["official_test"] == {"found": 10, "used": 10}
    assert metrics["splits"]["test"]["images"] == 10
    excluded = 10 + 6 + 1  # the images, near-duplicates, the copy with another label
    assert metrics["rejected"]["reasons"]["leak"] == excluded
    load_manifest()


def test_table_with_patients_given_test_split_and_cervix_crop(project):
    """A patient's images are one group; other images of test patients are excluded."""
    rows = ["path,label,group,split"]
    for file in sorted(Path("raw").rglob("[0-9]*.jpg")):
        number, label = int(file.stem), file.parent.name
        split = "test" if number >= 40 or number == 36 else ""
        rows.append(f"{label}/{file.name},{label},p{number // 4},{split}")
    Path("raw/all.csv").write_text("\n".join(rows))
    set_params(project, table="all.csv", crop="cervix")
    metrics = preprocess.main()
    assert metrics["rejected"]["reasons"] == {"leak": 3}
    assert metrics["groups"]["images_with_known_patient"] == metrics["images"] == 45
    assert sum(metrics["crops"].values()) == 45
    assert set(metrics["crops"]) <= {"cervix", "fallback"}
    manifest = load_manifest()
    numbers = manifest["path"].str.extract(r"(\d+)\.jpg")[0].astype(int)
    assert set(numbers[manifest["split"] == "test"]) == {36, *range(40, 48)}
    assert (manifest.groupby(numbers // 4)["group"].nunique() == 1).all()


def test_too_many_invalid_files_stop_the_stage(project):
    write_files(Path("raw"), {f"a/bad{n}.jpg": b"x" for n in range(9)})
    message = r"data\.max_rejected: expected at most 5\.0% .* 9 not an image, 1 empty"
    with pytest.raises(InputError, match=message):
        preprocess.main()
    assert len(read_rejected()) == 11
    with pytest.raises(FileFormatError):
        load_dataset("data/processed")
    set_params(project, max_rejected=0.5)
    preprocess.main()


@pytest.mark.parametrize("lost", ["invalid", "conflict"])
def test_class_without_images_stops_the_stage(project, lost):
    contents = [b"", b""]
    if lost == "conflict":
        contents = [file.read_bytes() for file in sorted(Path("raw/a").glob("??.jpg"))[:6]]
    paths = [f"c/{n}.jpg" for n in range(len(contents))]
    write_files(Path("raw"), dict(zip(paths, contents, strict=True)))
    set_params(project, max_rejected=1, conflicting_labels="drop")
    message = r"class c: expected .* the first is c/0\.jpg \(.*rejected\.csv has"
    with pytest.raises(InputError, match=message):
        preprocess.main()
    assert set(paths) <= set(read_rejected())


def test_sheet_of_near_duplicates_is_written_before_the_error_that_refers_to_it(project):
    image = make_image(99, 80, 64)
    copies = [image.resize((60 + 5 * n, 48 + 4 * n)) for n in range(5)]
    write_files(Path("raw"), {f"c/{n}.jpg": encode(copy) for n, copy in enumerate(copies)})
    with pytest.raises(InputError, match=r"class c: expected at least 3 groups .*duplicates\.png"):
        preprocess.main()
    assert Path("plots/duplicates.png").exists()


def test_warnings_name_what_is_wrong_and_the_remedy(project, capsys):
    gray = np.asarray(make_image(99, 80, 64).convert("L")).astype(np.uint16)
    patients = "path,patient\na/00.jpg,p\na/02.jpg,p\na/gone.jpg,p\n"
    deep = encode(Image.fromarray(gray * 16), "PNG")
    write_files(Path("raw"), {"a/deep.png": deep, "patients.csv": patients.encode()})
    set_params(project, groups="patients.csv", test_fraction=0.01)
    preprocess.main()
    summary, warnings = capsys.readouterr()
    assert summary.endswith("patients known for 2 of 56 images\n")
    for text in (
        "1 row of patients.csv matches no image (line 4: a/gone.jpg): paths are relative",
        "the patients of 54 of 56 images are unknown: ",
        "PNG I;16 with values of 12 bits: 1 of 56 images, ",
        "of the images, data.test_fraction asks for 1.0%: there are too few groups",
    ):
        assert text in warnings


def test_subgroups_are_written_where_patients_have_them_and_go_with_them(project):
    written = Path("data/processed/subgroups.csv")
    for header, expected in (("device", "path,column,value\na/00.jpg,device,A\n"), ("", None)):
        table = f"path,patient,{header}\na/00.jpg,p,A\na/02.jpg,p,\n"
        write_files(Path("raw"), {"patients.csv": table.encode()})
        set_params(project, groups="patients.csv")
        preprocess.main()
        assert (written.read_text() if written.exists() else None) == expected


COMMAND = [sys.executable, "-m", "stages.preprocess"]


def test_input_error_is_one_line_and_exit_status_1(project):
    set_params(project, source="nowhere")
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert done.returncode == 1
    expected = "error: data.source: nowhere: expected a folder of images, got nothing there"
    assert done.stderr.splitlines() == [expected]


@pytest.mark.slow
def test_sigkill_leaves_no_incomplete_dataset_and_no_workers(project):
    """Killed at moments all over its run: a dataset that can be loaded afterwards is complete."""
    images = {f"{'ab'[n % 2]}/more{n}.jpg": make_image(100 + n, 300, 300) for n in range(200)}
    write_files(Path("raw"), {path: encode(image) for path, image in images.items()})
    set_params(project, workers=2)
    started = time.monotonic()
    subprocess.run(COMMAND, check=True)
    duration, complete = time.monotonic() - started, read_outputs()
    for part in np.linspace(0.2, 1, 8):
        shutil.rmtree(".cache", ignore_errors=True)
        process = subprocess.Popen(COMMAND, start_new_session=True)
        time.sleep(part * duration)
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
    subprocess.run(COMMAND, check=True)
    assert read_outputs() == complete


def session_is_alive(session: int) -> bool:
    try:
        os.killpg(session, 0)  # sends no signal
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_whole_kaggle_dataset_with_small_images(tmp_path, monkeypatch):
    """The challenge's folders, recurring file names, invalid files and label corrections."""
    monkeypatch.chdir(tmp_path)
    part = "additional_Type_{0}_v2/Type_{0}"
    names = kaggle_names({"train": "train/train/Type_{0}", "additional": part})
    empty = [f"{part.format(k)}/{n}.jpg" for k, n in ((1, 5893), (2, 2845), (2, 5892))]
    truncated = ["train/train/Type_1/1339.jpg"]
    truncated += [f"{part.format(k)}/{n}.jpg" for k, n in ((1, 3068), (2, 7))]
    if not {*empty, *truncated} <= set(names):  # invented names
        names = sorted({*names[:-6], *empty, *truncated})
    for number, name in enumerate(names):
        content = encode(make_image(number, 48, 40), quality=80)
        kept = 0 if name in empty else 0.75 if name in truncated else 1
        write_files(Path("raw"), {name: content[: int(kept * len(content))]})
    shutil.copy(ROOT / "data/label_fixes.csv", "raw")
    set_params(tmp_path, label_fixes="label_fixes.csv")
    metrics = preprocess.main()
    assert metrics["files"] == len(names)
    assert metrics["rejected"]["reasons"] == {"empty": 3, "truncated": 3}
    assert metrics["duplicates"]["copies"] == metrics["duplicates"]["near"] == 0
    assert metrics["label_fixes"]["applied"] == 3
    if os.environ.get("COLPOSCOPY_KAGGLE_LISTING"):
        assert metrics["files"] == 8215
        manifest = load_manifest()
        train = manifest.loc[manifest["path"].str.startswith("train/"), "label"].value_counts()
        assert train.to_dict() == {"Type_1": 252 - 1, "Type_2": 780, "Type_3": 449}


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
