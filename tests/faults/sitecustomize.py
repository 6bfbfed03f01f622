"""Faults inside a process; see campaign.py.

On PYTHONPATH, it makes system calls fail or the clock jump, as FAULT says.
"""

import errno
import os
import time

name, _, number = os.environ.get("FAULT", "").partition(":")
if name in ("fsync", "replace"):  # "replace:3": the third call of os.replace in this process fails
    calls, original = iter(range(1, 10**9)), getattr(os, name)

    def failing(*arguments, **options):
        if next(calls) == int(number):
            raise OSError(errno.EIO, os.strerror(errno.EIO), *map(str, arguments[1:]))
        return original(*arguments, **options)

    setattr(os, name, failing)
elif name == "clock":  # "clock:-86400": after a second, the clock goes so many seconds wrong
    start, real_time = time.monotonic(), time.time
    time.time = lambda: real_time() + (float(number) if time.monotonic() > start + 1 else 0)
