"""Texts, comments and charts use the field's words (docs/glossary.md) and American spelling.

The words below are ones that this project once used in their place: ordinary words with a private meaning, which a reader
of the literature doesn't know. The key ``colour_cast`` of metrics files passes, as a part of a longer word.
"""

import re
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT

INSTEAD = {  # word -> what to write instead
    "told right": "classified correctly",
    "still right": "classified correctly under attack",
    "gets right": "classifies correctly",
    "as they are": "clean",
    "dear": "expensive",
    "commonest": "majority class, most frequent",
    "whatever was tried": "worst case over all attacks",
    "how little": "minimum perturbation",
    "smallest budget": "minimum perturbation",
    "grey": "gray",
    "colour": "color",
    "centre": "center",
    "fooled": "misclassified",
    "withstand": "be robust to",
    "beside": "next to, in addition to",
    "wrong classes": "target classes",
}
# benchmarks/README.md is to be added when it is rewritten.
FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "dvc.yaml", "Makefile")),
    *ROOT.glob("params*.yaml"),
    *ROOT.glob(".dvc/plots/*.json"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("stages/**/*.py"),
    *ROOT.glob("stages/**/*.jinja"),
]


def pattern(word: str) -> re.Pattern:
    """The word; British spellings also with an ending, a phrase also across lines, which may start with a comment sign."""
    ending = "(?:s|d|ed|ing)?" if word in ("grey", "colour", "centre") else ""
    separator = r"[\s#]+"
    return re.compile(rf"\b{word.replace(' ', separator)}{ending}\b", re.IGNORECASE)


def occurrences(file: Path, word: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    lines = [text.count("\n", 0, found.start()) + 1 for found in pattern(word).finditer(text)]
    return [f"{file.relative_to(ROOT)}:{line}" for line in lines]


@pytest.mark.parametrize("word", INSTEAD)
def test_private_words_are_not_used(word):
    found = [place for file in FILES for place in occurrences(file, word)]
    assert not found, f"{word!r}: expected {INSTEAD[word]!r}, got it in {', '.join(found)}"


@pytest.mark.parametrize(
    ("word", "text", "matches"),
    [
        ("colour", "Colours of", True),
        ("colour", '"colour_cast"', False),
        ("wrong classes", "all wrong\n    # classes", True),
        ("dear", "a dear attack", True),
        ("dear", "endeared", False),
        ("grey", "GREY", True),
        ("beside", "besides", False),
    ],
)
def test_pattern_matches_words_but_not_keys(word, text, matches):
    assert bool(pattern(word).search(text)) == matches


def test_files_are_found():
    assert len(FILES) > 60
    assert {".json", ".md", ".py", ".jinja", ".yaml"} <= {file.suffix for file in FILES}
