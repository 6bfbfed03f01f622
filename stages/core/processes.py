"""How a command runs: as the only one, and to a clear end.

An error ends in one line and an exit status other than 0, so that DVC never records a failure as a
result.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stages.core.errors import InputError

INTERRUPTED = 128 + signal.SIGINT  # exit status, as of a shell
COMPUTING = "computing"  # how the names of threads begin that Ctrl-C ends at once


class AlreadyRunningError(InputError):
    """Another process runs the same stage with the same inputs."""


@contextmanager
def only_process(lock_file: Path) -> Iterator[None]:
    """Keep other processes off the same work; the lock ends with the process, however that ends.

    Raises:
        AlreadyRunningError: when another process holds the lock.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyRunningError(
            f"{lock_file}: expected to be the only process of this run, got another that holds it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def run_cli(main: Callable[..., object], **arguments: Any) -> None:
    """Run a command: the user's errors and Ctrl-C in one line, a bug with its traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # see stages/__init__.py
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal that knows no ∞ or ε gets a question mark, not an error
    try:
        main(**arguments)
    except (InputError, OSError, FloatingPointError) as error:
        text = (
            f"{error.filename}: {error.strerror}"
            if isinstance(error, OSError) and error.filename
            else str(error)
        )
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if (
            os.environ.get("LOCAL_RANK", "0") == "0"
        ):  # of several processes, which all are interrupted, one says so
            print("interrupted; the same command resumes", file=sys.stderr)
        # sys.exit would wait until threads have computed their batches.
        if any(thread.name.startswith(COMPUTING) for thread in threading.enumerate()):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        sys.exit(INTERRUPTED)
