"""Sheets of small captioned pictures, for looking: what was rejected, joined and cut out. Pillow only, repeatable bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.photographs.decoding import ImageDecodeError, upright
from stages.photographs.groups import NEAR, DuplicatePair
from stages.photographs.inventory import LEFT_OUT, kind
from stages.photographs.listing import ImageIndex
from stages.photographs.reading import DecodedImages

SHOWN = 24  # tiles of a sheet
TILE = 96  # pixels, side of a picture
CAPTION = 26  # pixels, two lines of text below it
COLUMNS = 8
COLOURS = 128  # of the palette; keeps a sheet of 24 tiles below 150 kB


@dataclass(frozen=True)
class Tile:
    """A picture (None: grey, nothing to see) with up to two lines of text."""

    picture: Image.Image | None
    caption: str


def draw_rejected(listing: ImageIndex, decoded: DecodedImages, rejected: Mapping[str, str], file: Path) -> None:
    """Faulty files first. A picture is shown where one can be decoded; what `listing` refused isn't opened."""
    order = sorted(rejected.items(), key=lambda item: (kind(item[1]) in LEFT_OUT, item))
    files = {one.path: one.file for one in (*decoded.listed, *listing.photographs)}
    tiles = [Tile(_preview(files.get(path)), f"{path}\n{kind(reason)}") for path, reason in order[:SHOWN]]
    save_sheet(tiles, file, "nothing was rejected")


def draw_duplicates(decoded: DecodedImages, links: Sequence[DuplicatePair], file: Path) -> None:
    """Pairs that were joined as near duplicates, side by side, the least similar first: there an error would show."""
    near = sorted((link for link in links if link.kind == NEAR), key=lambda link: (link.similarity, link.first, link.second))
    tiles = []
    for link in near[: SHOWN // 2]:
        for row in (link.first, link.second):
            one = decoded.listed[row]
            tiles.append(Tile(_preview(one.file), f"{one.path}\n{link.similarity:.3f} {one.label}"))
    save_sheet(tiles, file, "no near duplicates were found")


def draw_crops(decoded: DecodedImages, rows: Sequence[int], file: Path) -> None:
    """Photographs evenly spread over the store with a frame around what was kept: green, or red for a fallback."""
    tiles = []
    for row in rows[:: max(1, -(-len(rows) // SHOWN))]:
        one, region = decoded.listed[row], decoded.facts[row].region
        picture = _preview(one.file)
        if picture:
            colour = "red" if region.kind == "fallback" else "lime"
            picture = framed(picture, (region.left, region.top, region.right, region.bottom), colour)
        tiles.append(Tile(picture, f"{one.path}\n{region.kind}"))
    save_sheet(tiles, file, "no photographs")


def _preview(file: Path | None) -> Image.Image | None:
    try:
        return upright(file.read_bytes(), 2 * TILE, usable_part=0)[0] if file else None
    except (ImageDecodeError, OSError):
        return None


def save_sheet(tiles: Sequence[Tile], file: Path, nothing: str) -> None:
    """Write the tiles as a PNG, row by row; with no tiles, a strip that says `nothing`."""
    font = ImageFont.load_default(10)
    rows = max(1, -(-len(tiles) // COLUMNS))
    height = rows * (TILE + CAPTION) if tiles else CAPTION
    sheet = Image.new("RGB", (COLUMNS * TILE, height), "white")
    draw = ImageDraw.Draw(sheet)
    if not tiles:
        draw.text((4, 6), nothing, "black", font)
    for number, tile in enumerate(tiles):
        x, y = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        picture = tile.picture or Image.new("RGB", (TILE, TILE), "lightgrey")
        # Contained, not stretched: a sheet of crops is there to judge proportions.
        scale = (TILE - 4) / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), (x + 2, y + 2))
        for line, text in enumerate(tile.caption.split("\n")[:2]):  # the name, and what there is to say
            draw.text((x + 2, y + TILE + 11 * line), _shorten(text, font), "black", font)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, optimize=True)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text too long for a tile: of a path that is the file's name."""
    text = text.encode("ascii", "replace").decode()
    short = text
    while font.getlength(short) > TILE - 4 and len(short) > 2:
        short = ".." + short.removeprefix("..")[1:]
    return short


def framed(picture: Image.Image, box: tuple[float, float, float, float], colour: str) -> Image.Image:
    """A copy of a picture with a frame drawn; box: left, top, right, bottom in shares of its width and height."""
    picture = picture.convert("RGB")
    width, height = picture.size
    left, top, right, bottom = box
    corners = (left * (width - 1), top * (height - 1), right * (width - 1), bottom * (height - 1))
    ImageDraw.Draw(picture).rectangle(corners, outline=colour, width=max(1, max(picture.size) // 48))
    return picture
