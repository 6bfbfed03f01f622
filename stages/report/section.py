"""What a section of the report is: metrics, rows of plots, figures and texts of one result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.report.blocks import Block
from stages.report.results import ModelResults, Results


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Section:
    """One result.

    Attributes:
        id: anchor on the page.
        title: heading and entry in the contents.
        blocks: what it says; a section without blocks is left out.
        tables: plots/<name>.csv -> the rows of one model.
        metrics: what metrics/evaluate.json has of one model.
        figures: plots/<name>.png -> PNG.
        charts: figures of the page alone: DVC draws its own from the same tables.
        level: 3: a part of the section before it.
    """

    id: str
    title: str
    blocks: Callable[[Results], list[Block]]
    tables: Callable[[Results, ModelResults], dict[str, pd.DataFrame]] = _nothing
    metrics: Callable[[Results, ModelResults], dict[str, Any]] = _nothing
    figures: Callable[[Results], dict[str, bytes]] = _nothing
    charts: Callable[[Results], dict[str, bytes]] = _nothing
    level: int = 2

    def compute_tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """plots/<name>.csv -> the rows of both models; of tables without rows the columns."""
        by_model = [self.tables(results, model) for model in results.models.values()]
        joined = {}
        for name in by_model[0]:
            parts = [tables[name] for tables in by_model]
            filled = [part for part in parts if len(part)] or parts[:1]
            joined[name] = pd.concat(filled, ignore_index=True)
        return joined
