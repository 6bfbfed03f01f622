"""How a stage ends badly: one clear line and a non-zero exit status, so that DVC never records a failure as a result."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """What the user gave isn't what was expected; the message reads ``<key or file>: expected <what>, got <value>``."""


def run(main: Callable[[], object]) -> None:
    """Run a stage: the user's errors in one line, a fault of the program with its traceback; both exit with status 1."""
    try:
        main()
    except (InputError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
