"""params.yaml is checked as a whole, before any work, and every message names its key."""

import pytest
import yaml

from stages.core.params import ParamsError, flatten, load_all, load_params
from tests.helpers.repository import ROOT

FILES = [ROOT / "params.yaml", ROOT / "params.kaggle.yaml"]


@pytest.fixture
def edited(tmp_path):
    def edit(key, value):
        params = yaml.safe_load(FILES[0].read_text())
        node = params
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[last]
        else:
            node[last] = value
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(params))
        return file

    return edit


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_both_files_are_valid(file):
    assert load_all(file).attack.eps > 0


def test_both_files_have_the_same_keys():
    first, second = (flatten(load_all(file)) for file in FILES)
    assert first.keys() == second.keys()


@pytest.mark.parametrize(
    ("written", "value"), [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), (0.01, 0.01), ("1e-05", 1e-5), ("5e-05", 5e-5)]
)
def test_numbers_as_people_and_dvc_write_them(edited, written, value):
    assert load_all(edited("attack.eps", written)).attack.eps == pytest.approx(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack.eps", 8, r"attack\.eps: expected a number in \(0, 0\.5\] \(pixel units: write 8/255, not 8\), got 8"),
        ("attack.eps", 1, r"attack\.eps: expected a number in \(0, 0\.5\] .*, got 1"),
        ("attack.eps", 0, r"attack\.eps: expected a number in \(0, "),
        ("attack.eps_grid", [0.1, 0.6], r"attack\.eps_grid: expected a number in \(0, 0\.5\] .*, got 0\.6"),
        ("attack.eps", "8/0", r"attack\.eps: expected a number or a fraction"),
        ("attack.eps", ".nan", r"attack\.eps: expected a number"),
        ("attack.eps", True, r"attack\.eps: expected a number, got True"),
        ("attack.eps", [1], r"attack\.eps: expected a number, got \[1\]"),
        ("attack.eps_grid", [], r"attack\.eps_grid: expected a list of increasing numbers"),
        ("attack.eps_grid", [0.2, 0.1], r"attack\.eps_grid: expected a list of increasing numbers"),
        ("attack.epss", 0.1, r"attack: expected the keys norm, eps, eps_grid, got unknown epss"),
        ("attack.eps", None, r"attack: expected the keys norm, eps, eps_grid, got missing eps"),
        ("attak", {}, r"top level: expected the keys .*, got unknown attak"),
        ("train_clean.epochs", 1.5, r"train_clean\.epochs: expected a whole number of at least 1, got 1\.5"),
        ("train_clean.epochs", "ten", r"train_clean\.epochs: expected a whole number"),
        ("train_clean.augment.flip", "yes please", r"train_clean\.augment\.flip: expected true or false"),
        ("train_clean.augment", 3, r"train_clean\.augment: expected a mapping"),
        (
            "train_adv.method",
            "pdg",
            r"train_adv\.method: expected one of fgsm, fgsm_rs, nfgsm, pgd, trades, mart, free, got 'pdg'",
        ),
        ("model.arch", "", r"model\.arch: expected a non-empty text"),
        ("data.val_fraction", 0.5, r"data\.val_fraction \+ data\.test_fraction: expected at most"),
        ("seed", -1, r"seed: expected a whole number of at least 0, got -1"),
    ],
)
def test_errors_name_the_key(edited, key, value, message):
    if key == "data.val_fraction":
        file = edited("data.val_fraction", value)
        params = yaml.safe_load(file.read_text())
        params["data"]["test_fraction"] = 0.5
        file.write_text(yaml.safe_dump(params))
    else:
        file = edited(key, value)
    with pytest.raises(ParamsError, match=message) as error:
        load_all(file)
    assert str(file) in str(error.value)


def test_a_stage_sees_only_what_it_names():
    p = load_params("seed", "attack.eps", file=FILES[0])
    assert p.attack.eps == load_all(FILES[0]).attack.eps
    with pytest.raises(AttributeError):
        _ = p.attack.eps_grid
    with pytest.raises(AttributeError):
        _ = p.train_clean
    assert flatten(p) == {"seed": 0, "attack.eps": p.attack.eps}


def test_no_file_and_no_yaml(tmp_path):
    with pytest.raises(ParamsError, match="expected a parameter file, got none"):
        load_all(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="expected YAML"):
        load_all(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(ParamsError, match="the file: expected a mapping"):
        load_all(tmp_path / "params.yaml")


def test_every_key_has_a_comment_where_it_first_stands():
    seen = set()
    for line in FILES[0].read_text().splitlines():
        key = line.strip().partition(":")[0]
        if line.strip() and not line.lstrip().startswith(("#", "- ")) and not line.rstrip().endswith(":"):
            assert "#" in line or key in seen, f"no comment: {line}"
            seen.add(key)
