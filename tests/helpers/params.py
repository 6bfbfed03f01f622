"""The tests' own parameters: tests/params.yaml; a key that it lacks has params.yaml's value."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.core.params import Params
from tests.helpers.repository import ROOT

FILE, USERS_FILE = ROOT / "tests/params.yaml", ROOT / "params.yaml"
MISSING = object()  # as a value: the key is left out


@cache
def _content() -> dict[str, Any]:
    content = yaml.safe_load(USERS_FILE.read_text(encoding="utf-8"))
    update(content, yaml.safe_load(FILE.read_text(encoding="utf-8")))
    return content


def update(section: dict[str, Any], values: dict[str, Any]) -> None:
    """Also in sections of sections."""
    for key, value in values.items():
        if isinstance(value, dict):
            update(section[key], value)
        else:
            section[key] = value


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
    file.write_text(yaml.safe_dump(raw_params(**changes), sort_keys=False))
    return file
