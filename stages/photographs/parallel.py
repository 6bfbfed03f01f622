"""An ordered map over processes that never holds more than a few chunks of items and results.

Why not joblib (tried: 1.6.0, loky, return_as="generator"): it computes all results however slowly
they are taken, so that memory has no bound; its workers live on for minutes after a SIGKILL of
their parent; Ctrl-C prints their tracebacks; and starting them takes twice as long.
"""

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
CHUNKS_AHEAD = 3  # chunks for each worker that are submitted before their results are taken

ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def parallel_map(workers: int, cluster: str = "none") -> Iterator[ParallelMap]:
    """Yield a map over processes with the order of the built-in `map`.

    Args:
        workers: number of processes; 0: one per core; 1: none is started.
        cluster: address of a Dask scheduler whose workers are used instead, or none.

    Raises:
        InputError: when a worker was killed, or the cluster can't be used.
    """
    if cluster != "none":
        with cluster_executor(cluster) as (executor, threads):
            yield partial(_ordered, executor, threads)
        return
    workers = workers or _available_cores()
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker) as pool:
        # The workers inherit that SIGINT is ignored: Ctrl-C is for the main process alone.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(workers):
            pool.submit(os.getpid)  # starts one more worker, because none is idle yet
        signal.signal(signal.SIGINT, previous)
        try:
            yield partial(_ordered, pool, workers)
        except BrokenProcessPool:
            raise InputError(
                "runtime.workers: expected every worker to finish, got one that was killed, "
                f"probably for want of memory: set fewer than {workers}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ordered(
    executor: Executor, workers: int, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    running: deque[Future[list[Any]]] = deque()
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        running.append(executor.submit(_apply, function, chunk))
        if len(running) > CHUNKS_AHEAD * workers:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


def _apply(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    # One thread: the order in which a sum is computed must not depend on the number of cores.
    threadpool_limits(1)
    return [function(item) for item in items]


def _init_worker() -> None:
    """Make a worker exit with its parent, however the parent ends."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
