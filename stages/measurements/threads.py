"""Batches computed by several threads of a CPU, each with its share of the cores.

Threads that compute one batch together wait for each other at every layer, for long when something
else runs on the machine; with a batch each they don't.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

MAX_IMAGES = 64  # of a batch: more gain nothing on a CPU (benchmarks/README.md)
MIN_IMAGES = 16  # fewer are computed faster by all threads together
Result = TypeVar("Result")


def equal_parts(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of nearly the same size, their number a power of two: equal work for all threads.

    They don't depend on the number of threads, so that results don't, either.
    """
    count, size = 1, min(batch_size, MAX_IMAGES)
    if len(positions) >= 2 * MIN_IMAGES:
        count = 2
    while len(positions) > count * size:
        count *= 2
    return np.array_split(positions, min(count, len(positions))) if len(positions) else []


def run_in_threads(function: Callable[..., Result], batches: Sequence[np.ndarray]) -> list[Result]:
    """``function`` of each batch, in order; an error or Ctrl-C doesn't wait for the others."""
    cores = torch.get_num_threads()
    workers = min(cores, len(batches))
    if workers <= 1:
        return [function(batch) for batch in batches]
    pool = ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
    )
    try:
        return list(pool.map(function, batches))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)  # the math library has one number for all threads
