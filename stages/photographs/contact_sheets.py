"""Contact sheets, small images with captions: what was excluded, grouped and cropped. Pillow only, repeatable bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.core.files import open_atomic
from stages.photographs.crops import CropBox
from stages.photographs.decoding import ImageDecodeError, decode_and_orient
from stages.photographs.groups import NEAR, DuplicatePair
from stages.photographs.inventory import NOT_INVALID, reason_category
from stages.photographs.listing import ImageIndex
from stages.photographs.reading import MAX_BYTES, DecodedImages

SHOWN = 24  # tiles of a sheet
TILE = 96  # pixels, side of an image
CAPTION = 26  # pixels, two lines of text below it
HEAD = 16  # pixels, the title above all
COLUMNS = 8
PALETTE_SIZE = 128  # colors; keeps a sheet of 24 tiles below 150 kB

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """An image (None: gray, nothing to see) with up to two lines of text."""

    image: Image.Image | None
    caption: str


def save_rejected_sheet(
    index: ImageIndex, decoded: DecodedImages, rejected: Mapping[str, str], file: Path
) -> None:
    """Invalid files first. An image is shown where one can be decoded; what `index` rejected isn't opened."""
    order = sorted(
        rejected.items(), key=lambda item: (reason_category(item[1]) in NOT_INVALID, item)
    )
    files = {record.path: record.file for record in (*decoded.records, *index.images)}
    tiles = [
        Tile(_preview(files.get(path)), f"{path}\n{reason_category(reason)}")
        for path, reason in order[:SHOWN]
    ]
    save_sheet(
        tiles,
        file,
        f"Excluded files: {len(tiles)} of {len(order)}" if tiles else "No file was excluded",
        index.synthetic,
    )


def save_duplicates_sheet(
    index: ImageIndex, decoded: DecodedImages, pairs: Sequence[DuplicatePair], file: Path
) -> None:
    """Near-duplicates that were put into one group, pair by pair, lowest similarity first: there an error would show."""
    near = sorted(
        (pair for pair in pairs if pair.kind == NEAR),
        key=lambda pair: (pair.similarity, pair.first, pair.second),
    )
    tiles = []
    for pair in near[: SHOWN // 2]:
        for row in (pair.first, pair.second):
            record = decoded.records[row]
            tiles.append(
                Tile(_preview(record.file), f"{record.path}\n{pair.similarity:.3f} {record.label}")
            )
    title = f"Near-duplicates, lowest similarity first: {len(tiles) // 2} of {len(near)} pairs"
    save_sheet(
        tiles,
        file,
        title if tiles else "No near-duplicates were found",
        index.synthetic,
        pairs=True,
    )


def save_crops_sheet(
    index: ImageIndex, decoded: DecodedImages, rows: Sequence[int], file: Path
) -> None:
    """Cropped images, evenly spread over the dataset, with a frame around what was kept: green, or red for a fallback."""
    cropped = [row for row in rows if not decoded.metadata[row].crop_box.is_whole]
    tiles = []
    for row in cropped[:: max(1, -(-len(cropped) // SHOWN))]:
        record, crop_box = decoded.records[row], decoded.metadata[row].crop_box
        image = _preview(record.file)
        if image:
            image = with_frame(image, crop_box, "red" if crop_box.kind == "fallback" else "lime")
        tiles.append(Tile(image, f"{record.path}\n{crop_box.kind}"))
    title = (
        f"Crop regions: {len(tiles)} of {len(cropped)} cropped images"
        if tiles
        else "No image was cropped"
    )
    save_sheet(tiles, file, title, index.synthetic)


def _preview(file: Path | None) -> Image.Image | None:
    try:
        if file is None or file.stat().st_size > MAX_BYTES:  # refused unread, here too
            return None
        return decode_and_orient(file.read_bytes(), 2 * TILE)[0]
    except (ImageDecodeError, OSError):
        return None


def save_sheet(
    tiles: Sequence[Tile], file: Path, title: str, synthetic: bool, *, pairs: bool = False
) -> None:
    """Write the tiles as a PNG, row by row, below a title; with ``pairs`` a line between each two and the next."""
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
        for line, text in enumerate(
            tile.caption.split("\n")[:2]
        ):  # the name, and what there is to say
            draw.text((x + 2, y + TILE + 11 * line), _shorten(text, font), "black", font)
        if pairs and number % 2 == 0 and x:
            draw.line((x, y, x, y + TILE + CAPTION - 4), "black", 1)
    with open_atomic(file) as stream:
        sheet.quantize(PALETTE_SIZE, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            stream, "PNG", optimize=True
        )


def _shorten(text: str, font: Font) -> str:
    """The end of a text too long for a tile: of a path that is the file's name."""
    text = text.encode("ascii", "replace").decode()
    short = text
    while font.getlength(short) > TILE - 4 and len(short) > 2:
        short = ".." + short.removeprefix("..")[1:]
    return short


def with_frame(image: Image.Image, box: CropBox, color: str) -> Image.Image:
    """A copy of an image with a frame around a crop box."""
    image = image.convert("RGB")
    width, height = image.size
    corners = (
        box.left * (width - 1),
        box.top * (height - 1),
        box.right * (width - 1),
        box.bottom * (height - 1),
    )
    ImageDraw.Draw(image).rectangle(corners, outline=color, width=max(1, max(image.size) // 48))
    return image
