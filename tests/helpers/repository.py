"""Where the files under test lie, also those that dvc.yaml names."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def paths_of(entries: list) -> list[str]:
    """Entries of dvc.yaml are paths, or ``path: {options}``."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
