"""States that survive an interruption: kept outside DVC's outs, which are deleted before a stage runs."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric

import stages
from stages.core.errors import InputError


def run_fingerprint(params: object, inputs: list[Path]) -> str:
    """A name for one run: the same params, inputs and code give the same name, anything else another."""
    digest = hashlib.sha256(repr(params).encode())
    for file in [*inputs, *sorted(Path(stages.__path__[0]).rglob("*.py"))]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


class AlreadyRunningError(InputError):
    """Another process runs the same stage with the same inputs."""


class Checkpoint:
    """The last state of one run: ``<root>/.ckpt/<stage>/<fingerprint>/last.pt``."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        # DVC_ROOT is the main repository also in queued experiments, whose own folder is deleted afterwards.
        self.folder = Path(os.environ.get("DVC_ROOT", ".")) / ".ckpt" / stage / fingerprint
        self.file = self.folder / "last.pt"

    @contextmanager
    def lock(self, fabric: Fabric) -> Iterator[Self]:
        """Keep every other process off the same run; delete the states when the run is complete.

        Raises:
            AlreadyRunningError: when another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_suffix(".lock"))
        if fabric.is_global_zero:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise AlreadyRunningError(
                    f"{self.folder}: expected to be the only process of this run, got another that is running"
                ) from None
        try:
            yield self
            fabric.barrier()
            if fabric.is_global_zero:
                shutil.rmtree(self.folder)
        finally:
            lock.release()

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state in one step; whatever goes wrong before that, the previous one is kept.

        Raises:
            OSError: disk full or no permission; the message names the file.
        """
        temporary = self.file.with_suffix(".tmp")
        try:
            with temporary.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.file)
        except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
            temporary.unlink(missing_ok=True)
            raise OSError(f"{self.file}: expected to save the state, got: {error}; the previous one is kept") from error

    def load(self) -> dict[str, Any] | None:
        """The last state, or None when there is none."""
        return torch.load(self.file, map_location="cpu", weights_only=True) if self.file.exists() else None


class StepCache:
    """Results of named steps of one run: after an interruption, finished steps are read back instead of computed again.

    A result holds tensors, numbers, texts, lists and dicts of them. Of several processes the first one reads and writes the
    file, so that all agree which step is next. Without a checkpoint it remembers for this process only.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, fabric: Fabric | None = None) -> None:
        self._checkpoint = checkpoint if fabric is None or fabric.is_global_zero else None
        finished = (self._checkpoint.load() if self._checkpoint else None) or {}
        self._finished: dict[str, Any] = fabric.broadcast(finished) if fabric else finished

    def get_or_compute(self, step: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: what ``compute`` returns, now or in the run that was interrupted."""
        if step not in self._finished:
            self._finished[step] = compute()
            if self._checkpoint:
                self._checkpoint.save(self._finished)
        return self._finished[step]
