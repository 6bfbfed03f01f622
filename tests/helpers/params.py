"""The tests' own parameters: tests/params.yaml, with changes."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.params import Params
from tests.helpers.repository import ROOT

FILE = ROOT / "tests/params.yaml"
MISSING = object()  # as a value: the key is left out


@cache
def _content() -> dict[str, Any]:
    return YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))


def raw_params(**changes: Any) -> dict[str, Any]:
    """The content of the file with other values at dotted keys, valid or not."""
    raw = copy.deepcopy(_content())
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        if value is MISSING:
            del section[last]
        else:
            section[last] = value
    return raw


def params(**changes: Any) -> Params:
    """The checked parameters: ``params(**{"attack.eps": 0.1})``."""
    return Params.model_validate(raw_params(**changes))


def write_params(file: Path, **changes: Any) -> Path:
    """Write a params file with these changes."""
    YAML(typ="safe").dump(raw_params(**changes), file)
    return file
