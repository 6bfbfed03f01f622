"""The stage as a whole: what it writes adds up, repeats byte for byte, and is never half there."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from stages import preprocess
from stages.core.dataset import SPLITS, DatasetError, load_dataset
from stages.core.errors import InputError
from tests.helpers.image_files import ROOT, encoded, picture, write
from tests.helpers.kaggle import COUNTS, kaggle_names

OUTPUTS = ("data/processed/images.npy", "data/processed/manifest.csv", "data/processed/rejected.csv", "metrics/data.json")
SHEETS = ("plots/rejected.png", "plots/duplicates.png", "plots/crops.png")


def set_params(project: Path, **changes) -> None:
    """The project's own parameters at 16 pixels, for the pictures in raw/, without what belongs to the sample."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    fixes = str(ROOT / "data/label_fixes.csv")
    params["data"] |= {"source": "raw", "image_size": 16, "label_fixes": fixes, "groups": "none"} | changes
    params["runtime"] |= {"workers": 1, "tracking": False}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """48 photographs of two classes, each of the first six also as a near duplicate, and some bad files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    files = {f"{'ab'[n % 2]}/{n:02}.jpg": encoded(picture(n, 80, 64)) for n in range(48)}
    files |= {f"{'ab'[n % 2]}/near{n}.jpg": encoded(picture(n, 80, 64).resize((60, 48)), quality=70) for n in range(6)}
    files |= {
        "a/copy.jpg": files["a/02.jpg"],
        "b/conflict.jpg": files["a/04.jpg"],
        "a/empty.jpg": b"",
        "b/cut.jpg": files["b/01.jpg"][:900],
    }
    write(tmp_path / "raw", files | {"notes.txt": b"x"})
    set_params(tmp_path)
    return tmp_path


def table(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def content() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in OUTPUTS + SHEETS}


def test_everything_adds_up(project, capsys):
    metrics = preprocess.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "55 photographs in 48 groups: 27 a, 28 b"
    assert said[2].startswith("left out of 58 files: 1 empty, 1 truncated, 1 copy; data/processed/rejected.csv")
    assert said[3].endswith("crops: 55 square; official test pictures: 0 found, 0 used; other files: 1")
    store = load_dataset("data/processed")
    rejected = {row["path"]: row["reason"] for row in table("data/processed/rejected.csv")}
    assert rejected.pop("b/cut.jpg").startswith("truncated: ")
    assert rejected == {"a/copy.jpg": "copy: of a/02.jpg", "a/empty.jpg": "empty: 0 bytes"}
    assert store.classes == ("a", "b")
    assert store.images.shape == (55, 16, 16, 3)
    files = sum(path.is_file() for path in Path("raw").rglob("*"))
    assert metrics["images"] + metrics["rejected"]["total"] + metrics["other_files"] == files == 59
    assert metrics["duplicates"] == {"copies": 2, "near": 12, "near_links": 6, "conflicting_labels": 3}
    assert metrics["groups"]["total"] == 48
    assert json.loads(Path("metrics/data.json").read_text()) == metrics
    assert Path("metrics/data.json").read_text() == json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    assert sum(part["images"] for part in metrics["splits"].values()) == 55
    assert {name: len(store.indices(name)) for name in SPLITS} == {n: metrics["splits"][n]["images"] for n in SPLITS}
    assert (store.manifest.groupby("group")["split"].nunique() == 1).all()
    assert store.manifest["path"].is_monotonic_increasing
    by_path = store.manifest.set_index("path")
    assert set(by_path.index[by_path["disputed"] == 1]) == {"a/04.jpg", "a/near4.jpg", "b/conflict.jpg"}
    assert by_path.loc["a/near0.jpg", "group"] == "a/00.jpg"
    assert by_path.loc["b/conflict.jpg", "group"] == "a/04.jpg"
    row = store.manifest.index[store.manifest["path"] == "b/07.jpg"][0]
    wanted = picture(7, 80, 64).resize((16, 16), box=(8, 0, 72, 64))
    assert abs(store.images[row].astype(int) - wanted).max() < 12
    assert all(Path(name).stat().st_size < 150_000 for name in SHEETS)
    assert b"\r" not in Path("data/processed/manifest.csv").read_bytes()


def test_same_bytes_again_from_the_cache_and_with_workers(project, monkeypatch):
    preprocess.main()
    first = content()
    preprocess.main()
    assert content() == first, "from the cache"
    params = Path("params.yaml").read_text().replace("workers: 1", "workers: 2")
    Path("params.yaml").write_text(params)
    monkeypatch.setenv("DVC_ROOT", str(project / "elsewhere"))
    preprocess.main()
    assert content() == first, "two workers, an empty cache"
    assert (project / "elsewhere/.cache/preprocess").is_dir()


def test_conflicts_are_dropped_on_demand(project):
    set_params(project, conflicting_labels="drop")
    assert preprocess.main()["rejected"]["reasons"]["conflict"] == 3, "the two copies and the near duplicate of one of them"


def test_official_test_keeps_its_patients_out_of_training(project):
    shots = {f"test/test/{n}.jpg": encoded(picture(n, 80, 64), quality=60) for n in range(10)}
    solution = "image_name,a,b\n" + "".join(f"{n}.jpg,{1 - n % 2},{n % 2}\n" for n in range(10))
    write(Path("raw"), shots | {"solution_stg1_release.csv": solution.encode()})
    assert preprocess.main()["official_test"] == {"found": 10, "used": 0}
    set_params(project, test="official")
    metrics = preprocess.main()
    assert metrics["official_test"] == {"found": 10, "used": 10}
    assert metrics["splits"]["test"]["images"] == 10
    assert metrics["rejected"]["reasons"]["leak"] == 10 + 6 + 1, "the pictures, near duplicates and the copy with another label"
    manifest = load_dataset("data/processed").manifest
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


def test_cervix_crop_and_table_source(project):
    rows = "".join(f"{path.relative_to('raw')},{path.parent.name}\n" for path in sorted(Path("raw").rglob("[0-9]*.jpg")))
    Path("raw/some.csv").write_text("path,label\n" + rows)
    set_params(project, table="some.csv", crop="cervix")
    metrics = preprocess.main()
    assert metrics["images"] == 48
    assert sum(metrics["crops"].values()) == 48
    assert set(metrics["crops"]) <= {"cervix", "fallback"}


def test_table_with_patients_and_splits(project):
    """The patients join what doesn't look alike; the given test is the test; whose patient is in it isn't trained on."""
    paths = sorted(path.relative_to("raw").as_posix() for path in Path("raw").rglob("[0-9]*.jpg"))
    rows = []
    for path in paths:
        number = int(Path(path).stem)
        rows.append(f"{path},{path[0]},p{number // 4},{'test' if number >= 40 or number == 36 else ''}")
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


def test_too_many_rejected(project):
    write(Path("raw"), {f"a/bad{n}.jpg": b"x" for n in range(9)})
    with pytest.raises(
        InputError, match=r"data\.max_rejected: expected at most 5\.0% faulty files, got .* 9 not an image, 1 empty"
    ):
        preprocess.main()
    assert len(table("data/processed/rejected.csv")) == 11
    with pytest.raises(DatasetError):
        load_dataset("data/processed")
    set_params(project, max_rejected=0.5)
    preprocess.main()


def test_a_class_is_never_lost_quietly(project):
    write(Path("raw"), {"c/1.jpg": b"", "c/2.jpg": b""})
    set_params(project, max_rejected=1)
    with pytest.raises(InputError, match="class c: expected photographs that can be used, got none"):
        preprocess.main()


def run_stage() -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "stages.preprocess"], env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_mistake_is_one_line_and_a_failure(project):
    set_params(project, source="nowhere")
    done = run_stage()
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: data.source: nowhere: expected a folder of photographs, got nothing there"]


@pytest.mark.slow
def test_killed_at_any_moment_leaves_no_half_store(project):
    """Killed 12 times at random moments: what then opens as a store is the whole one, and no worker lives on."""
    write(Path("raw"), {f"{'ab'[n % 2]}/more{n}.jpg": encoded(picture(100 + n, 300, 300)) for n in range(200)})
    set_params(project)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("workers: 1", "workers: 2"))
    started = time.monotonic()
    assert run_stage().returncode == 0
    whole_time, whole = time.monotonic() - started, content()
    moments = random.Random(0)  # noqa: S311
    for _ in range(12):
        for entry in Path(".cache").rglob("*.npz"):
            entry.unlink()
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.preprocess"], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
        )
        time.sleep(moments.uniform(0.1, 1.0) * whole_time)
        process.kill()
        process.wait()
        try:
            load_dataset("data/processed")
        except DatasetError:
            pass
        else:
            assert {name: Path(name).read_bytes() for name in OUTPUTS} == {name: whole[name] for name in OUTPUTS}
        deadline = time.monotonic() + 20
        while session_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not session_is_alive(process.pid)
    assert run_stage().returncode == 0
    assert content() == whole


def session_is_alive(session: int) -> bool:
    try:
        os.killpg(session, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_whole_kaggle_tree(tmp_path, monkeypatch):
    """The challenge's folders, counts, recurring names, bad files and label fixes, with tiny pictures."""
    monkeypatch.chdir(tmp_path)
    names = kaggle_names({"train": "train/train/Type_{0}", "additional": "additional_Type_{0}_v2/Type_{0}"})
    bad = {f"additional_Type_{k}_v2/Type_{k}/{n}.jpg": b"" for k, n in ((1, "5893"), (2, "2845"), (2, "5892"))}
    cut = {
        "additional_Type_1_v2/Type_1/3068.jpg": 0.78,
        "additional_Type_2_v2/Type_2/7.jpg": 0.75,
        "train/train/Type_1/1339.jpg": 0.55,
    }
    if not set(bad) | set(cut) <= set(names):
        names = sorted(set(names[: -len(bad) - len(cut)]) | set(bad) | set(cut))
    for number, name in enumerate(names):
        good = encoded(picture(number, 48, 40), quality=80)
        write(Path("raw"), {name: bad.get(name, good[: int(cut.get(name, 1) * len(good))])})
    set_params(tmp_path)
    metrics = preprocess.main()
    assert metrics["files"] == len(names)
    assert metrics["rejected"]["reasons"] == {"empty": 3, "truncated": 3}
    assert metrics["duplicates"]["copies"] == metrics["duplicates"]["near_links"] == 0
    assert metrics["label_fixes"]["applied"] == 3
    if os.environ.get("COLPOSCOPY_KAGGLE_LISTING"):
        assert metrics["files"] == 8215
        manifest = load_dataset("data/processed").manifest
        train = Counter(manifest[manifest["path"].str.startswith("train/")]["label"])
        assert train == {"Type_1": 252 - 1, "Type_2": 780, "Type_3": 449}, "one of them is truncated"
        assert metrics["images"] == 8215 - 6
        assert sum(COUNTS["train"] + COUNTS["additional"]) == 8215


def test_real_photographs(tmp_path, monkeypatch):
    """AnnoCerv to the end, patients from the file names."""
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
