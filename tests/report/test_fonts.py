"""Names that the default font can't write."""

import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager

from stages.report import fonts

CLASS = "\N{CJK UNIFIED IDEOGRAPH-9AD8}"  # "high", in no font of matplotlib
DEFAULT_FILE = font_manager.findfont(fonts.DEFAULT)


@pytest.fixture
def system_fonts(tmp_path, monkeypatch):
    """A folder; the fonts in it and those of matplotlib are all that is installed."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*map(str, tmp_path.iterdir())])
    return tmp_path


def write_font(file, name):
    """The default font under another name, with one more character."""
    font = TTFont(DEFAULT_FILE)
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap[ord(CLASS)] = "A"
    for record in font["name"].names:
        record.string = name
    font.save(file)


def test_default_font_is_alone_where_it_has_all_characters(system_fonts, caplog):
    assert fonts.families_for("Größe ε ≤ Тип1") == [fonts.DEFAULT]
    assert not caplog.records


def test_installed_font_adds_the_characters_that_are_missing(system_fonts, caplog):
    write_font(system_fonts / "new.ttf", "New")
    (system_fonts / "damaged.ttf").write_bytes(b"no font")
    assert fonts.families_for(f"CIN1 {CLASS}") == [fonts.DEFAULT, "New"]
    assert not caplog.records


def test_character_of_no_font_is_named_with_the_remedy(system_fonts, caplog):
    assert fonts.families_for(f"CIN1 {CLASS}") == [fonts.DEFAULT]
    assert f"expected a font with {CLASS}, got none" in caplog.text
