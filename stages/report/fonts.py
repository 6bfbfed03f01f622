"""Fonts for names that the default font can't write, such as classes in Chinese."""

import logging
import warnings
from contextlib import suppress

from matplotlib import font_manager

DEFAULT = "DejaVu Sans"  # comes with matplotlib
BOXES = "Last Resort"  # does, too, and has a box for every character


def families_for(text: str) -> list[str]:
    """The default font, and behind it installed ones that have the characters that it lacks.

    Which ones depends on the machine; where the default font has all characters, it is alone. Warns
    of characters that no installed font has.
    """
    families = [DEFAULT]
    missing = set(text) - _characters(font_manager.findfont(DEFAULT), set(text))
    while missing:
        name, file = max(_installed(), key=lambda font: len(_characters(font[1], missing)))
        if not (found := _characters(file, missing)):
            break
        families.append(name)
        missing -= found
    if missing:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # for every figure again
        logging.getLogger(__name__).warning(
            "figures: expected a font with %s, got none: they will be boxes. Install one and run "
            "again; for Chinese, Japanese and Korean: fonts-noto-cjk",
            " ".join(sorted(missing)),
        )
    return families


def _installed() -> list[tuple[str, str]]:
    """Name and file of every font, in one order on every machine, as far as it has the same."""
    manager = font_manager.fontManager
    # Fonts that were installed after matplotlib had listed all of them.
    for file in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
        with suppress(OSError, RuntimeError):  # no font, in spite of its suffix
            manager.addfont(file)
    fonts = [(font.name, font.fname) for font in manager.ttflist]
    return sorted(font for font in fonts if not font[0].startswith(BOXES))


def _characters(file: str, wanted: set[str]) -> set[str]:
    """Those that a font has."""
    font = font_manager.get_font(file)
    return {character for character in wanted if font.get_char_index(ord(character))}
