"""params.yaml is checked as a whole, before any work, and every message names its key."""

import copy
import math
import re
from typing import Literal, get_origin

import pytest
import yaml
from pydantic import BaseModel

from stages import train_adv
from stages.core import params_file
from stages.core.params import Params, PerturbationBudget, Seeded
from stages.core.params_file import ParamsError, flatten, load_params, load_stage_params
from tests.helpers.repository import ROOT

FILES = [ROOT / "params.yaml", ROOT / "params.kaggle.yaml"]
RAW = yaml.safe_load(FILES[0].read_text(encoding="utf-8"))
MISSING = object()


def leaf_keys(section, prefix=""):
    """The dotted keys of a YAML mapping, in their order; a list is a leaf."""
    return [
        key
        for name, value in section.items()
        for key in (
            leaf_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        )
    ]


def section_keys(section, prefix=""):
    """The dotted keys of the mappings in a YAML mapping."""
    nested = [(prefix + name, value) for name, value in section.items() if isinstance(value, dict)]
    return [key for name, value in nested for key in (name, *section_keys(value, f"{name}."))]


def with_changes(changes):
    """The contents of params.yaml with other values at some dotted keys."""
    raw = copy.deepcopy(RAW)
    for key, value in changes.items():
        *parents, last = key.split(".") if isinstance(key, str) else [key]
        section = raw
        for parent in parents:
            section = section[parent]
        if value is MISSING:
            del section[last]
        else:
            section[last] = value
    return raw


@pytest.fixture
def edited_file(tmp_path):
    """A function that writes params.yaml with changes, and returns the file."""

    def write(changes):
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(with_changes(changes)), encoding="utf-8")
        return file

    return write


@pytest.fixture
def error_lines(monkeypatch):
    """A function that gives the lines of the error message for params.yaml with changes; skips writing and parsing YAML."""

    def load(changes):
        monkeypatch.setattr(params_file.yaml, "safe_load", lambda text: with_changes(changes))
        with pytest.raises(ParamsError) as error:
            load_params(FILES[0])
        return str(error.value).splitlines()

    return load


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_params_file_is_valid(file):
    assert load_params(file).attack.eps > 0


def test_both_params_files_have_the_same_keys():
    first, second = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES)
    assert leaf_keys(first) == leaf_keys(second)
    assert list(flatten(load_params(FILES[0]))) == list(flatten(load_params(FILES[1])))


def test_schema_has_exactly_the_keys_of_the_file():
    assert set(flatten(load_params(FILES[0]))) == set(leaf_keys(RAW))


@pytest.mark.parametrize(
    ("written", "value"),
    [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), (0.01, 0.01), ("1e-05", 1e-5), ("5e-05", 5e-5)],
)
def test_numbers_may_be_fractions_or_exponents(edited_file, written, value):
    assert load_params(edited_file({"attack.eps": written})).attack.eps == pytest.approx(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "attack.eps",
            8,
            r"attack\.eps: expected a number in \(0, 0\.5\] \(pixel units: write 8/255, not 8\), got 8",
        ),
        ("attack.eps", 1, r"attack\.eps: expected a number in \(0, 0\.5\] .*, got 1"),
        ("attack.eps", 0, r"attack\.eps: expected a number in \(0, "),
        (
            "attack.eps_grid",
            [0.1, 0.6],
            r"attack\.eps_grid: expected .* numbers in \(0, 0\.5\] .*, got .*0\.6",
        ),
        ("attack.eps", "8/0", r"attack\.eps: expected a number or a fraction"),
        ("attack.eps", ".nan", r"attack\.eps: expected a number"),
        ("attack.eps", math.nan, r"attack\.eps: expected a number, got nan"),
        ("attack.eps", math.inf, r"attack\.eps: expected a number, got inf"),
        ("attack.eps", True, r"attack\.eps: expected a number, got True"),
        ("attack.eps", None, r"attack\.eps: expected a number, got None"),
        ("attack.eps", [1], r"attack\.eps: expected a number, got \[1\]"),
        (
            "attack.second_eps",
            101,
            r"attack\.second_eps: expected a number in \(0, 100\] .* or 0 for none, got 101",
        ),
        ("attack.second_eps", -1, r"attack\.second_eps: expected a number in \(0, 100\]"),
        ("attack.eps_grid", [], r"attack\.eps_grid: expected a list of increasing numbers"),
        ("attack.eps_grid", [0.2, 0.1], r"attack\.eps_grid: expected a list of increasing numbers"),
        ("attack.eps_grid", [0.1, 0.1], r"attack\.eps_grid: expected a list of increasing numbers"),
        (
            "attack.epss",
            0.1,
            r"attack\.epss: expected one of the keys norm, eps, eps_grid, second_eps, got an unknown key",
        ),
        ("attack.eps", MISSING, r"attack\.eps: expected a number, got no such key"),
        ("attack", MISSING, r"attack: expected a mapping of keys, got no such key"),
        (
            "attak",
            {},
            r"attak: expected one of the keys seed, .*, got an unknown key \(did you mean attack\?\)",
        ),
        ("zzz", 1, r"zzz: expected one of the keys seed, .*, got an unknown key$"),
        (
            "train_clean.epochs",
            1.5,
            r"train_clean\.epochs: expected a whole number of at least 1, got 1\.5",
        ),
        ("train_clean.epochs", "ten", r"train_clean\.epochs: expected a whole number"),
        (
            "train_clean.augment.flip",
            "yes please",
            r"train_clean\.augment\.flip: expected true or false",
        ),
        ("train_clean.augment", 3, r"train_clean\.augment: expected a mapping"),
        (
            "train_clean.val_eps",
            8,
            r"train_clean\.val_eps: expected a number .* \(pixel units: write 8/255, not 8\), got 8",
        ),
        (
            "train_adv.method",
            "pdg",
            r"train_adv\.method: expected one of fgsm, fgsm_rs, nfgsm, pgd, trades, mart, free, got 'pdg'",
        ),
        ("model.arch", "", r"model\.arch: expected a non-empty text"),
        ("seed", -1, r"seed: expected a whole number of at least 0, got -1"),
    ],
)
def test_error_names_file_key_and_value(edited_file, key, value, message):
    file = edited_file({key: value})
    with pytest.raises(ParamsError, match=rf"^{re.escape(str(file))}: {message}"):
        load_params(file)


def test_validation_and_test_fraction_must_leave_training_images(edited_file):
    file = edited_file({"data.val_fraction": 0.5, "data.test_fraction": 0.5})
    with pytest.raises(
        ParamsError,
        match=r"data\.test_fraction: expected at most 0\.8 together with data\.val_fraction, got",
    ):
        load_params(file)


def test_free_training_needs_a_replay(edited_file):
    file = edited_file({"train_adv.method": "free", "train_adv.steps": 1})
    with pytest.raises(
        ParamsError,
        match=r"train_adv\.steps: expected at least 2 replays for the method free: .*, got 1",
    ):
        load_params(file)


def test_l2_eps_may_exceed_the_linf_limit(edited_file):
    threat = load_params(
        edited_file({"attack.norm": "l2", "attack.eps": 2, "attack.eps_grid": [1, 2]})
    ).attack
    assert (threat.eps, threat.eps_grid) == (2.0, (1.0, 2.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"attack.eps": 8, "train_clean.epochs": 0},
        {"attack.epss": 1, "runtime.device": MISSING},
        {"seed": None, "train_adv.augment.shift": "far", "model": 3},
        {"train_clean.lr": -1, "train_adv.lr": -1},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_all_errors_of_a_file_are_reported_at_once(edited_file, changes):
    file = edited_file(changes)
    with pytest.raises(ParamsError) as error:
        load_params(file)
    lines = str(error.value).splitlines()
    assert {line.partition(": expected ")[0] for line in lines} == {
        f"{file}: {key}" for key in changes
    }
    assert len(lines) == len(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: 2}, "the file: expected keys that are text, got 1"),
        ({"attack": {**RAW["attack"], True: 2}}, "attack: expected keys that are text, got True"),
    ],
    ids=["1", "on"],
)
def test_key_that_is_not_text_is_refused(edited_file, changes, message):
    """A YAML key ``1`` is a number, and ``on`` is true."""
    file = edited_file(changes)
    with pytest.raises(ParamsError, match=rf"^{re.escape(str(file))}: {message}$"):
        load_params(file)


@pytest.mark.parametrize("text", ["8/", "/255", "8/255/3", "8//255", "8/0"])
def test_malformed_fraction_is_refused(edited_file, text):
    with pytest.raises(
        ParamsError,
        match=r"train_adv\.alpha_rel: expected a number or a fraction such as 8/255, got",
    ):
        load_params(edited_file({"train_adv.alpha_rel": text}))


def schema_field(key):
    """The schema's field of a dotted key."""
    section = Params
    *parents, last = key.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    return section.model_fields[last]


def wrong_values(key):
    """Values that no key of this kind may have."""
    kind = schema_field(key).annotation
    never = [None, math.nan, math.inf, -math.inf, -1, -0.5, [], [True], ["a"], {}, {"a": 1}]
    if kind is bool:
        return [*never, 0, 1, 0.0, "true", "yes", ""]
    if kind is int:
        return [*never, True, False, 1.5, 1.0, "1", "ten", "", [1], 10**12]
    if kind is float:
        return [*never, True, False, "ten", "", "1/0", "nan", "inf", "-1/255", [0.1]]
    if kind is str:
        return [*never, True, False, 1, 0.1, "", "  ", ["none"]]
    if get_origin(kind) is Literal:
        return [*never, True, False, 1, "", "nothing of the kind", ["none"]]
    assert get_origin(kind) is tuple, key
    lists = [
        [None],
        [math.nan],
        [math.inf],
        [-0.1],
        [0],
        [[0.1]],
        ["x"],
        [0.1, True],
        [0.1, math.nan],
        [0.2, 0.1],
    ]
    return [*never, *lists, True, 0.1, "0.1", ""]


@pytest.mark.parametrize("key", leaf_keys(RAW))
def test_wrong_value_is_refused_naming_exactly_its_key(key, error_lines):
    for value in wrong_values(key):
        lines = error_lines({key: value})
        assert len(lines) == 1, (value, lines)
        assert lines[0].startswith(f"{FILES[0]}: {key}: expected "), (value, lines)
        assert ", got " in lines[0], (value, lines)


@pytest.mark.parametrize("key", [*leaf_keys(RAW), *section_keys(RAW)])
def test_missing_key_is_refused_naming_exactly_that_key(key, error_lines):
    (line,) = error_lines({key: MISSING})
    assert line.startswith(f"{FILES[0]}: {key}: expected ")
    assert line.endswith(", got no such key")


@pytest.mark.parametrize("section", ["", *section_keys(RAW)])
def test_unknown_key_is_refused_in_every_section(section, error_lines):
    key = f"{section}.unheard_of".removeprefix(".")
    (line,) = error_lines({key: 1})
    assert line.startswith(f"{FILES[0]}: {key}: expected one of the keys ")


@pytest.mark.parametrize("section", section_keys(RAW))
def test_section_that_is_no_mapping_is_refused(section, error_lines):
    for value in (None, 1, True, "text", [], [1], math.nan):
        (line,) = error_lines({section: value})
        assert line == f"{FILES[0]}: {section}: expected a mapping of keys, got {value!r}"


class StageParams(Seeded):
    """A stage that reads the seed and some keys of ``attack``."""

    attack: PerturbationBudget


def test_stage_reads_only_the_keys_of_its_class():
    p = load_stage_params(StageParams, FILES[0])
    assert p.attack.eps == load_params(FILES[0]).attack.eps
    with pytest.raises(AttributeError):
        _ = p.attack.eps_grid
    with pytest.raises(AttributeError):
        _ = p.train_clean
    assert flatten(p) == {"seed": 0, "attack.norm": p.attack.norm, "attack.eps": p.attack.eps}


def test_adversarial_training_does_not_read_eps_grid():
    """dvc.yaml does not declare it for that stage: another robustness curve must not change what the stage logs."""
    assert "attack.eps_grid" not in flatten(load_stage_params(train_adv.Params, FILES[0]))


def test_stage_params_are_checked_as_a_whole(edited_file):
    file = edited_file({"train_adv.lr": -1})
    with pytest.raises(ParamsError, match=r"train_adv\.lr: expected"):
        load_stage_params(StageParams, file)


def test_params_are_immutable():
    p = load_params(FILES[0])
    sections = [p, *(value for _, value in p if isinstance(value, BaseModel)), p.train_adv.augment]
    assert len(sections) == 10
    for section in sections:
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), 1)


def test_missing_file_and_invalid_yaml_are_refused(tmp_path):
    file = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match="expected a parameter file, got none"):
        load_params(file)
    file.write_text("a: [")
    with pytest.raises(ParamsError, match="expected YAML"):
        load_params(file)
    file.write_bytes("seed: ä".encode("latin-1"))
    with pytest.raises(ParamsError, match="expected YAML"):
        load_params(file)
    for content in ("- 1", "", "text"):
        file.write_text(content)
        with pytest.raises(ParamsError, match="the file: expected a mapping"):
            load_params(file)


def test_every_key_has_a_comment_at_its_first_occurrence():
    seen = set()
    for line in FILES[0].read_text(encoding="utf-8").splitlines():
        key = line.strip().partition(":")[0]
        if (
            line.strip()
            and not line.lstrip().startswith(("#", "- "))
            and not line.rstrip().endswith(":")
        ):
            assert "#" in line or key in seen, f"no comment: {line}"
            seen.add(key)
