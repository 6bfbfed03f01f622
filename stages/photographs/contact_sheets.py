"""Contact sheets: small captioned images of what was excluded, grouped and cropped.

Drawn by Pillow alone, so that the bytes are repeatable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.core.files import open_atomic
from stages.photographs.crops import CropBox
from stages.photographs.decoding import ImageDecodeError, decode_and_orient
from stages.photographs.groups import COPY, DuplicatePair
from stages.photographs.image_index import ImageIndex
from stages.photographs.inventory import NOT_INVALID, reason_category
from stages.photographs.reading import MAX_BYTES, DecodedImages
from stages.photographs.tables import normal_form

SHOWN = 24  # tiles of a sheet
COLUMNS = 8  # tiles of a row
TILE = 96  # pixels, side of an image
CAPTION = 26  # pixels, two lines of text below it
HEAD = 16  # pixels, the title above all
PALETTE_SIZE = 128  # colors; keeps a sheet of 24 tiles below 150 kB

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """An image (None: gray, nothing to see) with its path and, in a second line, a remark."""

    image: Image.Image | None
    caption: str


def save_rejected_sheet(
    index: ImageIndex, decoded: DecodedImages, rejected: Mapping[str, str], file: Path
) -> None:
    """Excluded files, invalid ones first; gray where no image can be decoded.

    What `index` rejected isn't opened.
    """
    order = sorted((reason_category(rejected[path]) in NOT_INVALID, path) for path in rejected)
    files = {record.path: record.file for record in (*decoded.records, *index.images)}
    tiles = [
        Tile(_preview(files.get(path)), f"{path}\n{reason_category(rejected[path])}")
        for _, path in order[:SHOWN]
    ]
    title = f"Excluded files: {len(tiles)} of {len(order)}" if tiles else "No file was excluded"
    save_sheet(tiles, file, title, index.synthetic)


def save_duplicates_sheet(
    index: ImageIndex, decoded: DecodedImages, pairs: Sequence[DuplicatePair], file: Path
) -> None:
    """Pairs of the same scene. The lowest similarity comes first: there errors would show.

    Before them come duplicates with different labels, of which one label must be wrong.
    """

    def differ(pair: DuplicatePair) -> bool:
        return decoded.records[pair.first].label != decoded.records[pair.second].label

    found = [pair for pair in pairs if pair.kind != COPY or differ(pair)]
    found.sort(key=lambda pair: (not differ(pair), pair.similarity, pair.first, pair.second))
    tiles = []
    for pair in found[: SHOWN // 2]:
        for record in (decoded.records[pair.first], decoded.records[pair.second]):
            caption = f"{record.path}\n{pair.similarity:.3f} {record.label}"
            tiles.append(Tile(_preview(record.file), caption))
    title = "No two images of the same scene were found"
    if tiles:
        first = "different labels, then " if differ(found[0]) else ""
        shown = f"{len(tiles) // 2} of {len(found)}"
        title = f"Same scene, {first}lowest similarity first: {shown} pairs"
    save_sheet(tiles, file, title, index.synthetic, pairs=True)


def save_crops_sheet(
    index: ImageIndex, decoded: DecodedImages, rows: Sequence[int], file: Path
) -> None:
    """Cropped images, evenly spread over the dataset.

    A frame shows what was kept: green, or red for a fallback.
    """
    cropped = [row for row in rows if not decoded.metadata[row].crop_box.is_whole]
    tiles = []
    for row in cropped[:: max(1, -(-len(cropped) // SHOWN))]:
        record, crop_box = decoded.records[row], decoded.metadata[row].crop_box
        image = _preview(record.file)
        if image:
            image = with_frame(image, crop_box, "red" if crop_box.kind == "fallback" else "lime")
        tiles.append(Tile(image, f"{record.path}\n{crop_box.kind}"))
    title = f"Crop regions: {len(tiles)} of {len(cropped)} cropped images"
    save_sheet(tiles, file, title if tiles else "No image was cropped", index.synthetic)


def _preview(file: Path | None) -> Image.Image | None:
    try:
        if file is None or file.stat().st_size > MAX_BYTES:
            return None
        return decode_and_orient(file.read_bytes(), 2 * TILE)[0]
    except (ImageDecodeError, OSError):
        return None


def save_sheet(
    tiles: Sequence[Tile], file: Path, title: str, synthetic: bool, *, pairs: bool = False
) -> None:
    """Write the tiles as a PNG, row by row; with ``pairs`` a line separates each two tiles."""
    font = ImageFont.load_default(10)
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, HEAD + rows * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 2), title + (" (synthetic images)" if synthetic else ""), "black", font)
    for number, tile in enumerate(tiles):
        x, y = number % COLUMNS * TILE, HEAD + number // COLUMNS * (TILE + CAPTION)
        image = tile.image or Image.new("RGB", (TILE, TILE), "lightgray")
        # Contained, not stretched: proportions must be visible on a sheet of crops.
        scale = (TILE - 4) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), (x + 2, y + 2))
        path, _, remark = tile.caption.partition("\n")
        draw.text((x + 2, y + TILE), _shorten(path, font, keep_end=True), "black", font)
        draw.text((x + 2, y + TILE + 11), _shorten(remark, font), "black", font)
        if pairs and number % 2 == 0 and x:
            draw.line((x, y, x, y + TILE + CAPTION - 4), "black", 1)
    sheet = sheet.quantize(PALETTE_SIZE, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with open_atomic(file) as stream:
        sheet.save(stream, "PNG", optimize=True)


def _shorten(text: str, font: Font, *, keep_end: bool = False) -> str:
    """As much of a text as fits below a tile; the end of a path is the file's name."""
    text = normal_form(text)
    short = _ascii(text)
    while font.getlength(short) > TILE - 4 and text:
        text = text[1:] if keep_end else text[:-1]
        short = f"..{_ascii(text)}" if keep_end else f"{_ascii(text)}.."
    return short


def _ascii(text: str) -> str:
    r"""The text with \u.... for other characters, which would be boxes in Pillow's own font."""
    return text.encode("ascii", "backslashreplace").decode()


def with_frame(image: Image.Image, box: CropBox, color: str) -> Image.Image:
    """A copy of an image with a frame around a crop box."""
    image = image.convert("RGB")
    right, bottom = image.width - 1, image.height - 1
    corners = (box.left * right, box.top * bottom, box.right * right, box.bottom * bottom)
    ImageDraw.Draw(image).rectangle(corners, outline=color, width=max(1, max(image.size) // 48))
    return image
