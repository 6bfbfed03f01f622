"""The map over processes gives what one process gives; its workers end when one is killed, and on Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stages.core.errors import InputError
from stages.photographs.parallel import parallel_map
from tests.helpers.image_folders import decode_folder, write_image_folder
from tests.helpers.repository import ROOT


def test_workers_give_same_results_as_single_process(tmp_path):
    source = write_image_folder(tmp_path / "source")
    single, single_pixels = decode_folder(source, tmp_path / "cache1")
    with parallel_map(2) as map_:
        parallel, parallel_pixels = decode_folder(source, tmp_path / "cache2", map_)
    assert parallel_pixels == single_pixels
    assert parallel.hashes == single.hashes
    assert parallel.rejected == single.rejected
    np.testing.assert_array_equal(parallel.thumbnails, single.thumbnails)


def test_killed_worker_is_one_line_that_names_the_setting():
    with (
        pytest.raises(
            InputError,
            match=r"runtime\.workers: expected every worker to finish, .* set fewer than 2",
        ),
        parallel_map(2) as map_,
    ):
        list(map_(os._exit, [1]))


INTERRUPTED = """
import time
from stages.core.processes import run_cli
from stages.photographs.parallel import parallel_map

def main():
    with parallel_map(2) as map_:
        for _ in map_(time.sleep, [0.01] * 8 + [0.2] * 800):
            print("running", flush=True)

if __name__ == "__main__":
    run_cli(main)
"""


def test_ctrl_c_reaches_the_main_process_alone(tmp_path):
    (tmp_path / "main.py").write_text(INTERRUPTED)
    env, pipes = (
        os.environ | {"PYTHONPATH": str(ROOT)},
        {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, env=env, start_new_session=True, **pipes
    )
    assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    start = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert error == "interrupted; the same command resumes\n"
    assert process.returncode == 130
    assert time.monotonic() - start < 20, "the chunks of 1.6 s that the workers have begun, not all"
