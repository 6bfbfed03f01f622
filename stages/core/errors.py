"""How a stage ends on an error: one clear line and a non-zero exit status, so that DVC never records a failure as a result."""

import sys
from collections.abc import Callable
from typing import Any


class InputError(ValueError):
    """What the user gave isn't what was expected; the message reads ``<key or file>: expected <what>, got <value>``."""


def run_cli(main: Callable[..., object], **arguments: Any) -> None:
    """Run a command: the user's errors in one line, a bug with its traceback; both exit with status 1."""
    try:
        main(**arguments)
    except (InputError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
