"""The workers of a Dask cluster in place of processes on this machine."""

import platform
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
import scipy

from stages.core.errors import InputError
from stages.photographs.code_digest import CODE_DIGEST

TIMEOUT = 10  # seconds until a scheduler that doesn't answer counts as unreachable


@contextmanager
def cluster_executor(address: str) -> Iterator[tuple[Executor, int]]:
    """An executor whose tasks run on the workers, and the number of workers.

    What a lost worker had begun, others repeat.

    Raises:
        InputError: when there is no scheduler, no worker, or one of them has other code or files.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "runtime.cluster: expected the package distributed, got none: "
            "pip install -r requirements-cluster.txt"
        ) from None
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except OSError as error:
        raise InputError(
            f"runtime.cluster: expected a Dask scheduler at {address}, got {error}"
        ) from None
    with client:
        folder = str(Path.cwd())
        answers = client.run(describe_process, folder, on_error="return")
        if not answers:
            raise InputError(f"runtime.cluster: expected workers at {address}, got none")
        try:  # the scheduler unpickles the tasks, too
            answers[address] = client.run_on_scheduler(describe_process, folder)
        except ImportError as error:
            answers[address] = error
        _check_processes(answers)
        threads = client.nthreads()
        for worker, count in threads.items():
            if count > 1:
                raise InputError(
                    f"runtime.cluster: expected workers of one thread, got {count} threads in "
                    f"{worker}: start them with --nthreads 1 "
                    "(decoding changes the filter of warnings of its whole process)"
                )
        # pure=False: equal tasks are not looked for, which would hash all their arguments.
        yield client.get_executor(pure=False), len(threads)


def describe_process(folder: str) -> dict[str, str]:
    """What must be equal here and there for the same result."""
    return {
        "code (stages/photographs)": CODE_DIGEST[:12],
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
        "scipy": scipy.__version__,
        f"folder {folder}": "there" if Path(folder).is_dir() else "missing",
    }


def _check_processes(answers: dict[str, dict[str, str] | Exception]) -> None:
    """answers: what `describe_process` returned or raised, by address."""
    expected = describe_process(str(Path.cwd()))
    for process, answer in answers.items():
        if isinstance(answer, Exception):
            raise InputError(
                f"runtime.cluster: expected {process} to know this project, got {answer!r}: start "
                "scheduler and workers in this project's environment, its folder in PYTHONPATH"
            )
        for name, value in expected.items():
            if answer.get(name) != value:
                raise InputError(
                    f"runtime.cluster: expected {process} to have {name} {value}, "
                    f"got {answer.get(name)}: update and restart it"
                )
