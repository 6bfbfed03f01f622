"""What a section of the report consists of: each kind of block has one macro in page.html.jinja.

Texts are escaped by the template, unless they are `markupsafe.Markup`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Block:
    """A part of a section."""

    @property
    def kind(self) -> str:
        """Name of its macro."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items(Block):
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Heading(Block):
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Box(Block):
    """Blocks set off from the others; ``style``: empty or ``warn``."""

    blocks: Sequence[Block]
    style: str = ""


@dataclass(frozen=True)
class Columns(Block):
    """Blocks next to each other where there is room."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Details(Block):
    """Blocks that open on a click; in print they are open."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Definitions(Block):
    """Terms and what they mean."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cards(Block):
    """Large numbers: style, title, (name, number) pairs."""

    cards: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Figure(Block):
    """One of the figures.

    Attributes:
        name: in `Results.figures`.
        alt: what it shows, for those who can't see it.
        caption: below it.
        data: files in plots/ that its numbers are from.
    """

    name: str
    alt: str
    caption: str
    data: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, tag (td or th) and HTML attributes."""

    text: Any
    tag: str = "td"
    attributes: dict[str, Any] = field(default_factory=dict)


Row = list[Cell]


@dataclass(frozen=True)
class Table(Block):
    """A table; ``style``: empty, ``long`` (may be divided between pages) or a class of its own."""

    title: str
    head: Sequence[Row]
    body: Sequence[Row]
    style: str = ""


def head(*names: str) -> list[Row]:
    """One row of column names; an empty name is an empty cell."""
    return [[Cell(name, "th", {"scope": "col"}) if name else Cell("") for name in names]]


def row(name: Any, *cells: Any) -> Row:
    """A row: its name, and cells."""
    return [Cell(name, "th", {"scope": "row"}), *(Cell(cell) for cell in cells)]


def grouped_head(names: Iterable[str], groups: Sequence[str], within: Sequence[str]) -> list[Row]:
    """Two rows: column names, then for each group, a model, the same columns."""
    first = [Cell(name, "th", {"scope": "col", "rowspan": 2}) for name in names]
    spans = {"scope": "colgroup", "colspan": len(within)}
    first += [Cell(group, "th", spans) for group in groups]
    return [first, [Cell(name, "th", {"scope": "col"}) for _ in groups for name in within]]
