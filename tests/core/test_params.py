"""params.yaml is checked as a whole, before any work, and every message names its key."""

import math
import re
from typing import Literal, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from stages import attack_eval
from stages.core.params import Params, PerturbationBudget, Seeded
from stages.core.params_file import ParamsError, flatten, load_params, load_stage_params
from tests.helpers.params import MISSING, params, raw_params, write_params
from tests.helpers.repository import ROOT

FILES = [ROOT / f"params{name}.yaml" for name in ("", ".kaggle", ".photographs")]
NEVER = [None, math.nan, math.inf, -math.inf, -1, -0.5, [], [True], ["a"], {}, {"a": 1}]
WRONG = {  # type of a key -> values that no such key accepts
    bool: [0, 1, 0.0, "true", "yes", ""],
    int: [True, False, 1.5, 1.0, "1", "ten", "", [1], 10**12],
    float: [True, False, "ten", "", "1/0", "8/", "8//255", "8/255/3", "nan", "-1/255", [0.1]],
    str: [True, False, 1, 0.1, "", "  ", ["none"]],
    Literal: [True, False, 1, "", "nothing of the kind", ["none"]],
    tuple: [True, 0.1, "0.1", "", [None], [math.nan], [-0.1], [0], [[0.1]], ["x"], [0.2, 0.1]],
}


def is_section(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def fields(section: type[BaseModel] = Params, prefix: str = "") -> dict[str, type]:
    """Dotted key -> type: all sections and keys."""
    found: dict[str, type] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        found[prefix + name] = kind
        found |= fields(kind, f"{prefix}{name}.") if is_section(kind) else {}
    return found


FIELDS = fields()
SECTIONS = [key for key, kind in FIELDS.items() if is_section(kind)]
KEYS = [key for key in FIELDS if key not in SECTIONS]


def refused_keys(**changes) -> set[str]:
    """The dotted keys that the schema objects to."""
    with pytest.raises(ValidationError) as caught:
        Params.model_validate(raw_params(**changes))
    locations = [error["loc"] for error in caught.value.errors()]
    return {".".join(part for part in loc if isinstance(part, str)) for loc in locations}


@pytest.mark.parametrize("key", KEYS)
def test_wrong_value_is_refused_at_its_key(key):
    kind = FIELDS[key]
    for value in [*NEVER, *WRONG[get_origin(kind) or kind]]:
        assert refused_keys(**{key: value}) == {key}, value


@pytest.mark.parametrize("section", SECTIONS)
def test_section_that_is_no_mapping_is_refused(section):
    for value in (None, 1, True, "text", [], math.nan):
        assert refused_keys(**{section: value}) == {section}


@pytest.mark.parametrize("key", FIELDS)
def test_every_key_is_required(key):
    assert refused_keys(**{key: MISSING}) == {key}


@pytest.mark.parametrize("section", ["", *(f"{section}." for section in SECTIONS)])
def test_unknown_key_is_refused_in_every_section(section):
    assert refused_keys(**{f"{section}unheard_of": 1}) == {f"{section}unheard_of"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_params_file_has_every_key_and_says_what_it_means(file):
    assert list(flatten(load_params(file))) == KEYS
    seen = set()
    for line in FILES[0].read_text(encoding="utf-8").splitlines():
        key, colon, rest = line.partition(":")
        if colon and rest and not line.lstrip().startswith(("#", "- ")):
            assert "#" in rest or key.strip() in seen, f"no comment: {line}"
            seen.add(key.strip())


@pytest.mark.parametrize("written", ["8/255", 8 / 255, "3.1372549019607843e-02"])
def test_numbers_may_be_fractions_or_exponents(written):
    assert params(**{"attack.eps": written}).attack.eps == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack.eps": 8}, r"attack\.eps: expected a number .* write 8/255, not 8\), got 8"),
        ({"attack.epss": 1}, r"attack\.epss: expected .* unknown key \(did you mean eps\?\)"),
        ({"attack.eps": MISSING}, r"attack\.eps: expected a value, got no such key"),
        ({"train_adv.method": "pdg"}, r"train_adv\.method: expected 'fgsm', .*, got 'pdg'"),
        (
            {"data.val_fraction": 0.5, "data.test_fraction": 0.5},
            r"data\.test_fraction: expected at most 0\.8 together with data\.val_fraction, got 0.5",
        ),
        (
            {"train_adv.method": "free", "train_adv.steps": 1},
            r"train_adv\.steps: expected at least 2 replays for the method free: .*, got 1",
        ),
        ({"seed": -1, "train_adv.lr": -1}, r"seed: expected .*\n.*train_adv\.lr: expected .*"),
    ],
)
def test_error_names_file_key_and_value(changes, message, tmp_path):
    file = write_params(tmp_path / "params.yaml", **changes)
    with pytest.raises(ParamsError, match=rf"^{re.escape(str(file))}: {message}$"):
        load_params(file)


def test_l2_without_an_eps_of_its_size_is_an_error_that_names_a_plausible_one(tmp_path):
    file = write_params(tmp_path / "params.yaml", **{"attack.norm": "l2"})
    with pytest.raises(ParamsError, match=r"attack\.eps: .* from 0\.1 to 100 .* such as 0\.5 "):
        load_params(file)
    fitting = {"attack.norm": "l2", "attack.eps": 0.5, "attack.eps_grid": [0.2, 0.5]}
    assert str(params(**fitting).attack.budget) == "L2, ε = 0.5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "expected YAML, got an error"),
        ("seed: ä".encode("latin-1"), "expected YAML, got an error"),
        (b"seed: 0\nseed: 1\n", "expected YAML, got an error: .*duplicate key.* in line 2"),
        (b"- 1", "the file: expected"),
        (b"", "the file: expected"),
        (b"1: 2", "expected keys that are texts, got 1"),
        (None, "expected a parameter file, got none"),
    ],
)
def test_file_that_is_no_params_file_is_refused(content, message, tmp_path):
    file = tmp_path / "params.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ParamsError, match=rf"(?s)^{re.escape(str(file))}: .*{message}"):
        load_params(file)


class Stage(Seeded):
    """A stage that reads the seed and the budget."""

    attack: PerturbationBudget


def test_stage_reads_only_the_keys_of_its_class_from_a_file_that_is_checked_as_a_whole(tmp_path):
    file = write_params(tmp_path / "params.yaml")
    assert list(flatten(load_stage_params(Stage, file))) == ["seed", "attack.norm", "attack.eps"]
    assert "attack.eps_grid" in flatten(load_stage_params(attack_eval.Params, file))
    write_params(file, **{"train_adv.lr": -1})
    with pytest.raises(ParamsError, match=r"train_adv\.lr: expected"):
        load_stage_params(Stage, file)
