"""Named steps of the stage: divided among processes, shown when finished, kept to resume."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from stages.core.checkpoints import Checkpoint
from stages.core.distributed import share
from stages.measurements.target import TargetModel
from stages.measurements.threads import (
    MIN_IMAGES,
    BatchFunction,
    equal_parts,
    run_in_threads,
)


class Steps:
    """Named steps of one run of the stage: each is shown when it is finished, and kept on disk.

    After an interruption, finished steps are read back. Of several processes the first one reads
    and writes the file, so that all agree which step is next. Without a checkpoint nothing is kept.
    """

    def __init__(self, fabric: Fabric, checkpoint: Checkpoint | None = None) -> None:
        self._fabric = fabric
        self._checkpoint = checkpoint if fabric.is_global_zero else None
        finished = (self._checkpoint.load() if self._checkpoint else None) or {}
        self._finished: dict[str, Any] = fabric.broadcast(finished)
        show = fabric.is_global_zero and sys.stderr.isatty()
        self._bar = tqdm(unit="step", leave=False, disable=not show)
        self.done = 0

    def expect(self, total: int) -> None:
        """Tell the progress bar how many steps there are."""
        self._bar.reset(total)

    def run(
        self,
        name: str,
        target: TargetModel,
        positions: np.ndarray,
        function: BatchFunction,
        *arguments: Any,
        others_correct: int = 0,
    ) -> dict[str, Tensor]:
        """``function(target, batch, *arguments)`` on the images at these positions.

        They are divided among all processes, and the results are put together again.

        Args:
            name: of the step; no other has it.
            target: model and images.
            positions: (M,).
            function: tensors (B, ...) of a batch; with ``logits``, the accuracy is shown.
            *arguments: of the function.
            others_correct: images that are classified correctly and not among these.

        Returns:
            Tensors (M, ...) on the CPU, in the order of ``positions``; empty without images.
        """
        start = self._begin(name)
        if name not in self._finished:
            rank, processes = self._fabric.global_rank, self._fabric.world_size
            batches: list[dict[str, Tensor]] = []
            error = None
            try:
                mine = positions[rank::processes]
                if target.fabric.device.type == "cpu" and len(mine) >= 2 * MIN_IMAGES:
                    equal = equal_parts(mine, target.batch_size)
                    batches = run_in_threads(function, target, equal, *arguments)
                else:
                    for first in range(0, len(mine), target.batch_size):
                        batch = target.load(mine[first : first + target.batch_size])
                        values = function(target, batch, *arguments)
                        batches.append({key: value.cpu() for key, value in values.items()})
            except Exception as raised:  # raised again by all processes
                error = raised
            parts = share(self._fabric, batches, error)
            self._keep(name, _merge(parts, len(positions)))
        result = self._finished[name]
        accuracy = None
        if "logits" in result:
            correct = (result["logits"].argmax(1) == target.labels[positions]).sum().item()
            accuracy = (correct + others_correct) / len(target.split)
        self._end(name, start, accuracy)
        return result

    def once(
        self, name: str, function: Callable[..., dict[str, Any]], *arguments: Any
    ) -> dict[str, Any]:
        """``function(*arguments)``, in every process: for what is small."""
        start = self._begin(name)
        if name not in self._finished:
            self._keep(name, function(*arguments))
        self._end(name, start)
        return self._finished[name]

    def skip(self) -> None:
        """Count a step that has nothing to do."""
        self.done += 1
        self._bar.update()

    def _begin(self, name: str) -> float:
        self._bar.set_description(name)
        return time.monotonic()

    def _keep(self, name: str, result: dict[str, Any]) -> None:
        self._finished[name] = result
        if self._checkpoint:
            self._checkpoint.save(self._finished)

    def _end(self, name: str, start: float, accuracy: float | None = None) -> None:
        self.done += 1
        self._bar.update()
        if self._bar.disable and self._fabric.is_global_zero:  # in a log: a line for each step
            shown = "" if accuracy is None else f"accuracy {100 * accuracy:.1f}%, "
            print(f"{name}: {shown}{time.monotonic() - start:.0f} s", flush=True)

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()


def _merge(parts: list[list[dict[str, Tensor]]], count: int) -> dict[str, Tensor]:
    """The results of all processes, which had the images by turns, in the images' order."""
    batches = [batch for part in parts for batch in part]
    order = torch.cat([torch.arange(count)[rank :: len(parts)] for rank in range(len(parts))])
    place = order.argsort()
    names = batches[0] if batches else ()
    return {name: torch.cat([batch[name] for batch in batches])[place] for name in names}
