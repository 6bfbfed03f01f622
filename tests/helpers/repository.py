"""Where the files under test lie, also those that dvc.yaml names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def paths_of(entries: list) -> list[str]:
    """Entries of dvc.yaml are paths, or ``path: {options}``."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def charts_of(stages: Mapping[str, Any]) -> dict[str, str]:
    """Title -> table of every chart in dvc.yaml; what has no title there has its template's."""
    charts = {}
    for stage in stages.values():
        for entry in stage.get("plots", ()):
            for path, options in entry.items() if isinstance(entry, dict) else ():
                if path.endswith(".csv"):
                    template = json.loads(
                        (ROOT / f".dvc/plots/{options['template']}.json").read_text()
                    )
                    charts[options.get("title", template["title"]["text"])] = path
    return charts
