"""Contact sheets: captions that tell the images apart, and what is shown first."""

from pathlib import Path
from types import SimpleNamespace

from stages.photographs import contact_sheets
from stages.photographs.contact_sheets import Tile, save_duplicates_sheet, save_sheet
from stages.photographs.groups import COPY, NEAR, DuplicatePair
from stages.photographs.image_index import ImageIndex, ImageRecord


def test_captions_tell_names_apart_that_the_font_cannot_write(tmp_path):
    pictures = set()
    for name in ("猫.jpg", "犬.jpg", f"{'long/' * 9}猫.jpg", f"{'long/' * 9}犬.jpg"):
        save_sheet([Tile(None, f"{name}\nremark")], tmp_path / "sheet.png", "Title", False)
        pictures.add((tmp_path / "sheet.png").read_bytes())
    assert len(pictures) == 4


def test_duplicates_with_different_labels_are_shown_first(monkeypatch):
    shown: list[Tile] = []
    monkeypatch.setattr(contact_sheets, "save_sheet", lambda tiles, *_, **__: shown.extend(tiles))
    records = [ImageRecord(f"{n}.jpg", Path(f"{n}.jpg"), label) for n, label in enumerate("aaab")]
    pairs = [DuplicatePair(0, 1, NEAR, 0.9), DuplicatePair(2, 3, COPY, 1.0)]
    decoded = SimpleNamespace(records=records)
    save_duplicates_sheet(ImageIndex([], {}, {}), decoded, pairs, Path("duplicates.png"))
    assert [tile.caption[0] for tile in shown] == ["2", "3", "0", "1"]
