"""Contact sheets: captions that tell the images apart."""

from stages.photographs.contact_sheets import Tile, save_sheet


def test_captions_tell_names_apart_that_the_font_cannot_write(tmp_path):
    pictures = set()
    for name in ("猫.jpg", "犬.jpg", f"{'long/' * 9}猫.jpg", f"{'long/' * 9}犬.jpg"):
        save_sheet([Tile(None, f"{name}\nremark")], tmp_path / "sheet.png", "Title", False)
        pictures.add((tmp_path / "sheet.png").read_bytes())
    assert len(pictures) == 4
