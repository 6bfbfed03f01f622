"""A folder of images for the tests of decoding many files."""

import io
from pathlib import Path

from stages.photographs.listing import list_images
from stages.photographs.reading import DecodedImages, decode_all
from tests.helpers.image_files import data_params, encode, make_image, write_files


def write_image_folder(folder: Path) -> Path:
    """20 images of two classes, an empty file and a truncated one."""
    files = {f"{'ab'[n % 2]}/{n}.jpg": encode(make_image(n, 60 + n, 50)) for n in range(20)}
    return write_files(folder, files | {"a/99.jpg": b"", "b/99.jpg": encode(make_image(0))[:300]})


def decode_folder(source: Path, cache: Path, map_=map) -> tuple[DecodedImages, bytes]:
    """The images of a folder at 16 x 16 pixels, and their pixels."""
    spool, p = io.BytesIO(), data_params(source, image_size=16)
    return decode_all(list_images(p).images, p, spool, map_, cache), spool.getvalue()
