"""Batches computed by several threads of a CPU, each with its share of the cores.

Threads that compute one batch together wait for each other at every layer, for long when something
else runs on the machine; with a batch each they don't.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.processes import COMPUTING
from stages.measurements.target import TargetModel

MAX_IMAGES = 64  # of a batch: more gain nothing on a CPU (benchmarks/README.md)
MIN_IMAGES = 16  # fewer are computed faster by all threads together
BatchFunction = Callable[..., dict[str, Tensor]]  # (target, batch, ...) -> tensors (B, ...)


def equal_parts(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of nearly the same size, their number a power of two: equal work for all threads.

    They don't depend on the number of threads: with another, results differ by rounding at most.
    """
    count, size = 2, min(batch_size, MAX_IMAGES)
    while len(positions) > count * size:
        count *= 2
    return np.array_split(positions, min(count, len(positions)))


def run_in_threads(
    function: BatchFunction, target: TargetModel, parts: Sequence[np.ndarray], *arguments: Any
) -> list[dict[str, Tensor]]:
    """``function(target, batch, *arguments)`` of the images at each part's positions, in order.

    After an error no further batch begins; Ctrl-C doesn't wait for those that are computed, either
    (`run_cli`).
    """
    cores = torch.get_num_threads()
    workers = min(cores, len(parts))
    pool = ThreadPoolExecutor(workers, COMPUTING, torch.set_num_threads, (cores // workers,))
    try:
        futures = [pool.submit(_run_part, function, target, part, arguments) for part in parts]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)  # the math library has one number for all threads


def _run_part(
    function: BatchFunction, target: TargetModel, positions: np.ndarray, arguments: Sequence[Any]
) -> dict[str, Tensor]:
    return function(target, target.load(positions), *arguments)
