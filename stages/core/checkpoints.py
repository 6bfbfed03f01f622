"""States that survive an interruption.

They lie outside DVC's outs, which DVC deletes before a stage runs.
"""

import hashlib
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import torch
from lightning_fabric import Fabric

import stages
from stages.core.files import open_atomic
from stages.core.processes import AlreadyRunningError, only_process

ABANDONED_AFTER = 14 * 24 * 3600  # seconds since a state of an interrupted run was written


def run_fingerprint(params: object, inputs: list[Path]) -> str:
    """A name for one run: the same for the same params, inputs and code."""
    digest = hashlib.sha256(repr(params).encode())
    for file in [*inputs, *sorted(Path(stages.__path__[0]).rglob("*.py"))]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


class Checkpoint:
    """The last two states of one run, in ``<root>/.ckpt/<stage>/<fingerprint>/``."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        # A queued experiment has a folder of its own, which is deleted afterwards; DVC_ROOT is the
        # main repository even there.
        self.folder = Path(os.environ.get("DVC_ROOT", ".")) / ".ckpt" / stage / fingerprint

    @property
    def file(self) -> Path:
        """The last state."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The one before."""
        return self.folder / "previous.pt"

    @contextmanager
    def lock(self, fabric: Fabric) -> Iterator[Self]:
        """Keep every other process off the same run.

        When the run is complete, its states are deleted, and abandoned ones of the same stage.

        Raises:
            AlreadyRunningError: when another process holds the lock.
        """
        lock = self.folder.with_suffix(".lock")
        with only_process(lock) if fabric.is_global_zero else nullcontext():
            yield self
            fabric.barrier()
            if fabric.is_global_zero and self.folder.exists():
                shutil.rmtree(self.folder)
        if fabric.is_global_zero:
            delete_abandoned_states(self.folder.parent)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state in one step; whatever goes wrong before that, it is kept.

        Raises:
            OSError: disk full or no permission; the message names the file.
        """
        with open_atomic(self.file) as stream:
            try:
                torch.save({"run": self.folder.name, "state": state}, stream)
            except RuntimeError as error:  # torch's own, raised while it handles a full disk
                raise (
                    error.__context__ if isinstance(error.__context__, OSError) else error
                ) from None
            stream.flush()
            if self.file.exists():
                os.replace(self.file, self.previous)

    def load(self) -> dict[str, Any] | None:
        """The last state that is intact, or None; a damaged one is set aside, with a warning."""
        for file in (self.file, self.previous):
            if file.exists():
                try:
                    return self._read(file)
                # Each kind of damage has an error of its own; all mean the same: resume from the
                # state before, or from none.
                except Exception as error:
                    aside = file.with_name(f"{file.name}.damaged")
                    os.replace(file, aside)
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    print(
                        f"warning: {file}: expected an intact state, got: {reason}; "
                        f"set aside as {aside.name}",
                        file=sys.stderr,
                    )
        return None

    def _read(self, file: Path) -> dict[str, Any]:
        with zipfile.ZipFile(file) as archive:  # torch writes checksums, but doesn't compare them
            if damaged := archive.testzip():
                raise ValueError(f"a wrong checksum of {damaged}")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if saved["run"] != self.folder.name:
            raise ValueError(f"the state of run {saved['run']}")
        return saved["state"]


def delete_abandoned_states(folder: Path) -> None:
    """Delete the states of a stage's interrupted runs that nobody resumed for two weeks.

    Their parameters or code have changed since then, or else they would have been resumed. What
    another process uses is kept, and so is what can't be deleted: it must not fail a complete run.
    """
    for lock in folder.glob("*.lock"):
        state = lock.with_suffix("")
        with suppress(AlreadyRunningError, OSError), only_process(lock):
            newest = max((file.stat().st_mtime for file in state.glob("*")), default=0)
            if time.time() - newest > ABANDONED_AFTER:
                shutil.rmtree(state, ignore_errors=True)
            if not state.exists():
                lock.unlink()
