"""An ordered map over processes, which keeps neither items nor results piling up in memory."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from threadpoolctl import threadpool_limits

from stages.core.errors import InputError
from stages.photographs.cluster import cluster_executor

CHUNK = 8  # items that a worker takes at once

ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def parallel_map(workers: int, cluster: str = "none") -> Iterator[ParallelMap]:
    """A map over that many processes (0: one per core; 1: none is started), or over the workers of a Dask cluster."""
    if cluster != "none":
        with cluster_executor(cluster) as (executor, threads):
            yield partial(_ordered, executor, threads)
        return
    workers = workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker) as pool:
        with _ignoring_sigint():  # as the workers then do, too: Ctrl-C is for the main process
            for _ in range(workers):  # each starts one, for none is idle yet
                pool.submit(os.getpid)
        try:
            yield partial(_ordered, pool, workers)
        except BrokenProcessPool:
            raise InputError(
                "runtime.workers: expected every worker to finish, got one that was killed, probably for want of memory: "
                f"set fewer than {workers}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _ignoring_sigint() -> Iterator[None]:
    """Processes that are started inside never get SIGINT, not even while they import."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ordered(
    executor: Executor, workers: int, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """The results in the order of the items; only a few chunks are under way at a time."""
    running: deque[Future[list[Any]]] = deque()
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        running.append(executor.submit(_apply, function, chunk))
        if len(running) > 3 * workers:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


def _apply(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    threadpool_limits(
        1
    )  # the order in which a sum is computed must not depend on the number of cores
    return [function(item) for item in items]


def _init_worker() -> None:
    """Exit with the parent, however it ends."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
