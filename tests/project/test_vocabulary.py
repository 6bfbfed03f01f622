"""Texts, comments and charts use the field's words (docs/glossary.md) and American spelling."""

import re

import pytest

from tests.helpers.repository import ROOT

INSTEAD = {  # word that this project once used -> the field's
    "told right": "classified correctly",
    "still right": "classified correctly under attack",
    "gets right": "classifies correctly",
    "dear": "expensive",
    "commonest": "majority class, most frequent",
    "whatever was tried": "worst case over all attacks",
    "how little": "minimum perturbation",
    "smallest budget": "minimum perturbation",
    "grey": "gray",
    "colours?": "color",
    "centred?": "center",
    "fooled": "misclassified",
    "withstand": "be robust to",
    "beside": "next to, in addition to",
}
FOLDERS = ("stages", "tools", "docs", "benchmarks", ".dvc/plots")
TEXTS = [file for pattern in ("*.md", "*.yaml", "Makefile") for file in ROOT.glob(pattern)] + [
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".md", ".jinja", ".json")
]


@pytest.mark.parametrize("word", INSTEAD)
def test_private_words_are_not_used(word):
    # A phrase may go on in the next line, which may start with a comment sign.
    phrase = word.replace(" ", r"[\s#]+")
    pattern = re.compile(rf"(?<![^\W_]){phrase}(?![^\W_])", re.IGNORECASE)  # also in some_word
    found = [f"{file.relative_to(ROOT)}" for file in TEXTS if pattern.search(file.read_text())]
    assert not found, f"{word!r}: expected {INSTEAD[word]!r}"
