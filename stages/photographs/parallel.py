"""An ordered map over processes, which keeps neither items nor results piling up in memory."""

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

CHUNK = 8  # items that a worker takes at once

ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def parallel_map(workers: int) -> Iterator[ParallelMap]:
    """A map over that many processes (0: one per core); with one, no process is started.

    Only a few chunks are under way at a time.
    """
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker) as pool:

        def ordered(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            running: deque[Future[list[Any]]] = deque()
            items = iter(items)
            while chunk := list(itertools.islice(items, CHUNK)):
                running.append(pool.submit(_apply, function, chunk))
                if len(running) > 3 * workers:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

        yield ordered


def _apply(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [function(item) for item in items]


def _init_worker() -> None:
    """One thread for the arithmetic, and exit with the parent, however it ends."""
    threadpool_limits(1)

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
