"""The map over processes: ordered, bounded in memory, and without processes that are left over."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from threadpoolctl import threadpool_info

from stages.core.errors import InputError
from stages.photographs.parallel import CHUNK, CHUNKS_AHEAD, parallel_map
from tests.helpers.repository import ROOT


def uneven(number: int) -> int:
    time.sleep(0.003 * (number % 3))
    return number


def blas_threads(_: int) -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


def test_results_are_in_order_and_few_are_held():
    drawn = itertools.count()
    with parallel_map(2) as map_:
        results = map_(uneven, (next(drawn) for _ in range(200)))
        first = next(results)
        assert next(drawn) <= (2 * CHUNKS_AHEAD + 1) * CHUNK
        rest = list(results)
    assert [first, *rest] == sorted([first, *rest])
    assert len(rest) == 199


def test_worker_has_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with parallel_map(2) as map_:
        assert list(map_(blas_threads, range(1))) == [{1}]


def test_killed_worker_is_one_line_that_names_the_setting():
    message = r"runtime\.workers: expected every worker to finish, .* set fewer than 2"
    with pytest.raises(InputError, match=message), parallel_map(2) as map_:
        list(map_(os._exit, [1]))


MAIN = """
import time
from stages.core.processes import run_cli
from stages.photographs.parallel import parallel_map

def main():
    with parallel_map(2) as map_:
        print("started", flush=True)
        for _ in map_(time.sleep, [0.01] * 8 + [0.05] * 3200):
            print("running", flush=True)

if __name__ == "__main__":
    run_cli(main)
"""


@pytest.mark.parametrize(
    ("sent", "moment"),
    [(signal.SIGINT, "started"), (signal.SIGINT, "running"), (signal.SIGKILL, "running")],
)
def test_end_of_main_process_ends_its_workers(tmp_path, sent, moment):
    """SIGINT reaches all processes, as from a terminal; SIGKILL the main process alone."""
    (tmp_path / "main.py").write_text(MAIN)
    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != f"{moment}\n":
        assert process.poll() is None
    time.sleep(0.1)  # just started, the workers are importing by now
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)
    else:
        process.kill()
    # The pipes close with the last process: a chunk that is under way takes 0.4 s, all take 80 s.
    error = process.communicate(timeout=20)[1]
    if sent == signal.SIGINT:
        assert (process.returncode, error) == (130, "interrupted; the same command resumes\n")
    else:
        assert process.returncode == -signal.SIGKILL


def test_main_module_of_workers_imports_no_large_library():
    """Each worker imports `stages.preprocess`, and would need time and memory for them."""
    code = "import stages.preprocess, sys; print({'torch', 'mlflow', 'pandas'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == "set()\n"
