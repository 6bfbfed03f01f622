"""A Dask cluster gives the bytes that local processes give; what is wrong is said at once."""

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

LOCAL = {"dashboard_address": None, "host": "127.0.0.1"}
NOBODY = "tcp://127.0.0.1:9"


@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(n_workers=2, threads_per_worker=1, **LOCAL) as local:
        yield local.scheduler_address


def refusal(address: str) -> str:
    with pytest.raises(InputError) as caught, parallel_map(0, address):
        pass
    return str(caught.value)


def kill_worker_once(marker: Path) -> int:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.mark.slow
def test_cluster_writes_same_bytes_as_local_processes(scheduler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_raw_images(tmp_path / "raw")
    results = []
    for address in ("none", scheduler):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / f"cache{len(results)}"))
        set_params(tmp_path, workers=2, cluster=address)
        preprocess.main()
        results.append(read_outputs())
    assert results[0] == results[1]


@pytest.mark.slow
def test_lost_worker_costs_its_chunk_only(scheduler, tmp_path):
    with parallel_map(0, scheduler) as map_:
        pids = list(map_(kill_worker_once, [tmp_path / "marker"] * 100))
    assert len(pids) == 100
    assert (tmp_path / "marker").exists()
    assert os.getpid() not in pids


@pytest.mark.slow
def test_worker_with_other_code_or_without_the_folder_is_refused(scheduler, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "CODE_DIGEST", "0" * 64)
        assert "to have code (stages/photographs) 000000000000, got " in refusal(scheduler)
    monkeypatch.setattr(cluster.Path, "is_dir", lambda path: True)
    monkeypatch.setattr(cluster.Path, "cwd", lambda: Path("/only/here"))
    assert "to have folder /only/here there, got missing" in refusal(scheduler)


@pytest.mark.slow
def test_workers_with_several_threads_are_refused():
    with LocalCluster(n_workers=1, threads_per_worker=2, **LOCAL) as local:
        message = refusal(local.scheduler_address)
    assert "expected workers of one thread, got 2 threads in tcp" in message


def test_unreachable_scheduler_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    start = time.monotonic()
    assert f"runtime.cluster: expected a Dask scheduler at {NOBODY}, got" in refusal(NOBODY)
    assert time.monotonic() - start < 10


def test_missing_package_names_its_requirements_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install -r requirements-cluster.txt" in refusal(NOBODY)
