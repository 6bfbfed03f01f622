"""The photographs of a pack, found by their digests in a folder of the one who checks it."""

from pathlib import Path

import numpy as np

from stages.core.errors import InputError
from stages.evidence.pack import EvidencePack, sha256
from stages.photographs.decoding import ImageDecodeError, decode_image
from stages.photographs.reading import MAX_BYTES
from stages.photographs.source_files import find_files


class Photographs:
    """The files of a pack's rows, decoded as preprocess does, a batch at a time.

    Raises:
        InputError: when the folder lacks some of them.
    """

    def __init__(self, folder: Path, pack: EvidencePack) -> None:
        self._size, self._crop = pack.manifest.image_size, pack.manifest.crop
        wanted = set(pack.rows["file_sha256"])
        files = {}
        for file in find_files(folder).pictures.values():
            if file.stat().st_size <= MAX_BYTES and (digest := sha256(file)) in wanted:
                files[digest] = file
        if missing := len(wanted - files.keys()):
            raise InputError(
                f"{folder}: expected the {len(wanted)} photographs of the pack, "
                f"got {len(wanted) - missing} with its digests"
            )
        self._files = [files[digest] for digest in pack.rows["file_sha256"]]

    def load(self, start: int, stop: int) -> np.ndarray:
        """uint8 (B, H, W, 3): the images of these rows. Raises InputError for none."""
        images = []
        for file in self._files[start:stop]:
            try:
                images.append(decode_image(file.read_bytes(), self._size, self._crop).pixels)
            except ImageDecodeError as error:
                raise InputError(f"{file}: expected an image, got: {error}") from None
        return np.stack(images)
