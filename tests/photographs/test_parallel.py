"""The map over processes gives what one process gives."""

import numpy as np

from stages.photographs.parallel import parallel_map
from tests.helpers.image_folders import decode_folder, write_image_folder


def test_workers_give_same_results_as_single_process(tmp_path):
    source = write_image_folder(tmp_path / "source")
    single, single_pixels = decode_folder(source, tmp_path / "cache1")
    with parallel_map(2) as map_:
        parallel, parallel_pixels = decode_folder(source, tmp_path / "cache2", map_)
    assert parallel_pixels == single_pixels
    assert parallel.hashes == single.hashes
    assert parallel.rejected == single.rejected
    np.testing.assert_array_equal(parallel.thumbnails, single.thumbnails)
