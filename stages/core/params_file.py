"""params.yaml, read and checked as a whole before a stage does any work."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML, YAMLError

from stages.core.errors import InputError
from stages.core.params import Params, Seeded

OWN_WORDS = {  # pydantic's words -> what fits behind "expected"
    "Value error, ": "",
    "Input should be ": "",
    "String should match": "a text that matches",
    "Keys should be strings": "keys that are texts",
}
Stage = TypeVar("Stage", bound=Seeded)


class ParamsError(InputError):
    """Keys of params.yaml are unknown, missing, of the wrong type or out of range."""


def parse_yaml(text: str) -> Any:
    """The content of a params file, unchecked, as DVC reads it."""
    return YAML(typ="safe").load(text)


def load_params(file: Path | str = "params.yaml") -> Params:
    """The checked contents of a params file.

    Raises:
        ParamsError: for anything unknown, missing, twice there, of the wrong type, out of range or
            contradictory: a line for each key.
    """
    try:
        raw = parse_yaml(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{file}: expected a parameter file, got none: run the stages from the project's root"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: expected YAML, got an error: {_reason(error)}") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [f"{file}: {_describe(found)}" for found in error.errors(include_url=False)]
        raise ParamsError("\n".join(lines)) from None


def load_stage_params(stage: type[Stage], file: Path | str = "params.yaml") -> Stage:
    """Check the whole file; return only the sections and keys that a stage's class has.

    Raises:
        ParamsError: as `load_params`.
    """
    return stage.model_validate(load_params(file), from_attributes=True)


def flatten(params: BaseModel) -> dict[str, Any]:
    """Dotted keys -> values, as ``dvc params diff`` names them; for logging."""
    flat: dict[str, Any] = {}
    for name, value in params:
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{key}": item for key, item in flatten(value).items()}
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _reason(error: Exception) -> str:
    """What is wrong in a file that is no YAML, in one line, and where."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).partition("\n")[0]
    return f"{getattr(error, 'problem', '').partition(chr(10))[0]} in line {mark.line + 1}"


def _describe(error: Any) -> str:
    """``key: expected <what>, got <value>`` for one of pydantic's errors, in its words."""
    path = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(path) or "the file"
    if error["type"] == "missing":
        return f"{key}: expected a value, got no such key"
    if error["type"] == "extra_forbidden":
        section: Any = Params
        for name in path[:-1]:
            section = section.model_fields[name].annotation
        similar = difflib.get_close_matches(path[-1], section.model_fields, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        known = ", ".join(section.model_fields)
        return f"{key}: expected one of the keys {known}, got an unknown key{hint}"
    expected = error["msg"]
    for words, ours in OWN_WORDS.items():
        expected = expected.replace(words, ours)
    return f"{key}: expected {expected}, got {error['input']!r}"
