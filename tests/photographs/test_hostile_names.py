"""Names that could break tables, logs or the reader are kept, or refused in one line."""

import csv
from pathlib import Path

import pytest

from stages import preprocess
from stages.core.dataset import load_dataset
from stages.core.errors import InputError
from tests.helpers.image_files import encode, make_image, write_files
from tests.helpers.preprocessing import SHEETS, set_params

NAMES = (
    'quo"te', "com,ma;semi", "<script>alert(1)<", "<img src=x onerror=alert(1)>", "-dash", "=1+1",
    "+1", "@sum", "'", "\\", "%s{0}", " leading", "trailing ", "\U0001f600", "\u202egpj.exe",
    "\u2028", "\ufeff", "e\u0301", "\u00e9", "x.", "\u00e9" * 125, "x" * 251,
)  # fmt: skip
CLASSES = (
    ("nan", "None"), ("1", "true"), ("NULL", "null"), ("A", "a"), ("a", "a "), ("train", "CON"),
    ("Type_1", "Type_01"), ('quo"te', "com,ma"), ("<script>", "-dash"), ("=1+1", "@sum"),
    ("\U0001f600", "\u202egpj"), ("x" * 255, "\u00e9"),
)  # fmt: skip
CONTROLS = {
    "new\nline": "new\\x0aline",
    "re\rturn": "re\\x0dturn",
    "\x1b[31mred": "\\x1b[31mred",
    "\x7f": "\\x7f",
}


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    set_params(tmp_path, max_rejected=1)


def write_images(folders, names) -> dict[str, str]:
    """Images in raw/; path -> class."""
    files = {f"{folder}/{name}.jpg": folder for folder in folders for name in names}
    write_files(Path("raw"), {path: encode(make_image(n, 40, 40)) for n, path in enumerate(files)})
    return files


def processed_labels() -> dict[str, str]:
    manifest = load_dataset("data/processed").manifest
    return dict(zip(manifest["path"], manifest["label"], strict=True))


def test_odd_file_names_are_kept():
    files = write_images("ab", NAMES)
    preprocess.main()
    assert processed_labels() == files
    assert all(Path(name).stat().st_size < 150_000 for name in SHEETS)


@pytest.mark.parametrize("classes", CLASSES, ids=ascii)
def test_odd_class_names_are_kept(classes):
    files = write_images(classes, range(10))
    if len({path.stat().st_ino for path in Path("raw").iterdir()}) < 2:
        pytest.skip("the file system doesn't distinguish upper and lower case")
    preprocess.main()
    assert processed_labels() == files
    assert set(load_dataset("data/processed").classes) == set(classes)


def test_names_with_control_characters_are_refused_in_one_line(capsys):
    """A manifest has other rows for a carriage return, and a terminal obeys an escape."""
    kept = write_images("ab", range(10))
    write_images(["a"], CONTROLS)
    preprocess.main()
    assert processed_labels() == kept
    with Path("data/processed/rejected.csv").open(newline="", encoding="utf-8") as stream:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    shown = CONTROLS.values()
    expected = [f"a/{name}.jpg" for name in shown]
    assert rejected == dict.fromkeys(expected, "name: has control characters")
    assert not set("".join(capsys.readouterr())) & set("\r\x1b\x7f")


@pytest.mark.parametrize("name", CONTROLS)
def test_class_with_control_characters_stops_the_stage_in_one_line(name):
    write_images(["a", "b", name], range(4))
    with pytest.raises(InputError) as caught:
        preprocess.main()
    assert f"got none in {CONTROLS[name]}" in str(caught.value)
    assert str(caught.value).isprintable()
