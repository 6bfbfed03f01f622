"""params.yaml, read and checked as a whole before a stage does any work: a typo in a later stage's section is found at once."""

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from stages.core.errors import InputError
from stages.core.params import Params, Seeded

Stage = TypeVar("Stage", bound=Seeded)


class ParamsError(InputError):
    """Keys of params.yaml are unknown, missing, of the wrong type or out of range; the message names each on a line."""


def load_params(file: Path | str = "params.yaml") -> Params:
    """The checked contents of a params file.

    Raises:
        ParamsError: for anything unknown, missing, of the wrong type, out of range or contradictory; all of it at once.
    """
    try:
        raw = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{file}: expected a parameter file, got none: run the stages from the project's root"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: expected YAML, got an error: {error}") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(
            "\n".join(f"{file}: {_describe(found)}" for found in error.errors(include_url=False))
        ) from None


def load_stage_params(stage: type[Stage], file: Path | str = "params.yaml") -> Stage:
    """Check the whole file; return only the sections and keys that a stage's class has: it can read no others.

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


def _describe(error: Any) -> str:
    """``key: expected <what>, got <value>`` for one of pydantic's errors."""
    path = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(path) or "the file"
    if error["type"] == "invalid_key":  # YAML reads a key ``on`` as true
        return f"{key}: expected keys that are text, got {error['input']!r}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: expected a mapping of keys, got {error['input']!r}"
    section: Any = Params
    for name in path[:-1]:
        section = section.model_fields[name].annotation
    if error["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(path[-1], section.model_fields, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        return f"{key}: expected one of the keys {', '.join(section.model_fields)}, got an unknown key{hint}"
    own_words = error["type"] == "value_error"  # those of the schema's validators
    expected = error["ctx"]["error"] if own_words else _expected(section.model_fields[path[-1]])
    return f"{key}: expected {expected}, got " + (
        "no such key" if error["type"] == "missing" else repr(error["input"])
    )


def _expected(field: FieldInfo) -> str:
    """What a field accepts, in words."""
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of numbers"
    if issubclass(kind, BaseModel):
        return "a mapping of keys"
    if kind in (bool, str):
        return {bool: "true or false", str: "a non-empty text"}[kind]
    limits = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(rule, name)
    }
    if limits.get("le") == 2**31 - 1:
        del limits["le"]
    words = {"gt": "greater than", "ge": "of at least", "le": "of at most"}
    bounds = " and ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())
    return " ".join(
        filter(None, ("a whole number" if kind is int else "a number", bounds, field.description))
    )
