"""Where the files under test lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
