"""Tables between stages: CSV files, described by a datapackage.json that lies next to them.

The stage that writes a table declares its columns, once; whoever reads it finds types and meanings
in the descriptor (Frictionless Data Package, https://datapackage.org). So text stays text (a class
may be called ``1`` or ``NA``), and a reader needs no copy of the declaration.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import TypedDict  # pydantic demands this one before Python 3.12

from stages.core.files import FileFormatError, read_csv, read_json, write_csv, write_json

DESCRIPTOR = "datapackage.json"
PROBABILITY = "p_"  # with the class behind it: the name of a column
TYPES = {str: "string", int: "integer", float: "number"}


class _Field(TypedDict):
    name: str
    type: str
    description: str


class _Schema(TypedDict):
    fields: list[_Field]


class _Resource(TypedDict):
    name: str
    path: str
    schema: _Schema


class _Package(TypedDict):
    resources: list[_Resource]


@dataclass(frozen=True)
class Table:
    """A kind of table.

    Attributes:
        name: of the file, without its suffix.
        columns: name -> (type, meaning), in order.
        probabilities: whether a column ``p_<class>`` follows for each class.
    """

    name: str
    columns: Mapping[str, tuple[type, str]]
    probabilities: bool = False

    def all_columns(self, rows: pd.DataFrame) -> dict[str, tuple[type, str]]:
        """The columns that these rows must have: of the probabilities, one for each class."""
        classes = [name for name in rows.columns if name.startswith(PROBABILITY)]
        meaning = (float, "probability of the class")
        return {**self.columns, **(dict.fromkeys(classes, meaning) if self.probabilities else {})}


def check_columns(rows: pd.DataFrame, expected: Sequence[str], source: str) -> None:
    """Raise FileFormatError, naming ``source``, unless the columns are those, in order."""
    if list(rows.columns) != list(expected):
        raise FileFormatError(
            f"{source}: expected the columns {', '.join(expected)}, got {', '.join(rows.columns)}"
        )


def write_tables(folder: Path, tables: Iterable[tuple[Table, pd.DataFrame]]) -> None:
    """Write ``<folder>/<name>.csv``, numbers to 6 significant digits, and the descriptor."""
    resources = []
    for table, rows in tables:
        columns = table.all_columns(rows)
        check_columns(rows, list(columns), table.name)
        write_csv(folder / f"{table.name}.csv", rows)
        fields = [
            {"name": name, "type": TYPES[kind], "description": meaning}
            for name, (kind, meaning) in columns.items()
        ]
        path = f"{table.name}.csv"
        resources.append({"name": table.name, "path": path, "schema": {"fields": fields}})
    write_json(folder / DESCRIPTOR, {"resources": resources})


def table_names(folder: Path) -> list[str]:
    """The tables in a folder that attack_eval wrote."""
    return [resource["name"] for resource in _resources(folder)]


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """The table ``<folder>/<name>.csv``, with the types of its descriptor.

    Raises:
        FileFormatError: when one of the two is missing or isn't what attack_eval wrote.
    """
    for resource in _resources(folder):
        if resource["name"] == name:
            fields, file = resource["schema"]["fields"], folder / f"{name}.csv"
            text = [field["name"] for field in fields if field["type"] == "string"]
            rows = read_csv(file, "attack_eval", text)
            check_columns(rows, [field["name"] for field in fields], str(file))
            return rows
    known = ", ".join(resource["name"] for resource in _resources(folder))
    raise FileFormatError(
        f"{folder / DESCRIPTOR}: expected the table {name}, got {known or 'none'}"
    )


def _resources(folder: Path) -> list[Any]:
    return read_json(folder / DESCRIPTOR, "attack_eval", _Package)["resources"]
