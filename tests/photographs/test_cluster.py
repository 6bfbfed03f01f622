"""A Dask cluster gives the bytes that local processes give; what is wrong with it is said at once."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from stages import preprocess
from stages.core.errors import InputError
from stages.photographs import cluster
from stages.photographs.parallel import parallel_map
from tests.helpers.preprocessing import make_raw_images, read_outputs, set_params


@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as local:
        yield local.scheduler_address


def kill_worker_once(marker: Path) -> int:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.mark.slow
def test_cluster_writes_same_bytes_as_local_processes(scheduler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_raw_images(tmp_path / "raw")
    results = []
    for address in ("none", scheduler):
        set_params(tmp_path, workers=2, cluster=address)
        preprocess.main()
        results.append(read_outputs())
        for entry in Path(".cache").rglob("*.npz"):
            entry.unlink()
    assert results[0] == results[1]


@pytest.mark.slow
def test_lost_worker_costs_its_chunk_only(scheduler, tmp_path):
    with parallel_map(0, scheduler) as map_:
        pids = list(map_(kill_worker_once, [tmp_path / "marker"] * 100))
    assert len(pids) == 100
    assert (tmp_path / "marker").exists()
    assert os.getpid() not in pids


@pytest.mark.slow
def test_worker_with_other_code_is_refused(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "CODE_DIGEST", "0" * 64)
    expected = r"runtime.cluster: expected tcp://\S+ to have code .* 000000000000, got \w{12}"
    with pytest.raises(InputError, match=expected), parallel_map(0, scheduler):
        pass


@pytest.mark.slow
def test_worker_without_the_folder_is_refused(scheduler, monkeypatch):
    monkeypatch.setattr(cluster.Path, "is_dir", lambda path: True)
    monkeypatch.setattr(cluster.Path, "cwd", lambda: Path("/only/here"))
    with (
        pytest.raises(InputError, match="to have folder /only/here there, got missing"),
        parallel_map(0, scheduler),
    ):
        pass


@pytest.mark.slow
def test_workers_with_several_threads_are_refused():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=None, host="127.0.0.1"
    ) as local:
        refused = pytest.raises(
            InputError, match="expected workers of one thread, got 2 threads in tcp"
        )
        with refused, parallel_map(0, local.scheduler_address):
            pass


def test_unreachable_scheduler_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    start, expected = (
        time.monotonic(),
        r"runtime.cluster: expected a Dask scheduler at tcp://127.0.0.1:9, got",
    )
    with pytest.raises(InputError, match=expected), parallel_map(0, "tcp://127.0.0.1:9"):
        pass
    assert time.monotonic() - start < 10


def test_missing_package_names_its_requirements_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    expected = r"pip install -r requirements-cluster\.txt"
    with pytest.raises(InputError, match=expected), parallel_map(0, "tcp://127.0.0.1:9"):
        pass
