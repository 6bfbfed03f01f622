"""What becomes of the memory of freed tensors, on a CPU."""

import ctypes
import platform

# Options of glibc's mallopt, from malloc.h, and their values.
ONE_HEAP_FOR_ALL_THREADS = (-8, 1)  # M_ARENA_MAX
NO_BLOCK_APART = (-4, 0)  # M_MMAP_MAX
NEVER_SHRINK = (-1, 2**31 - 1)  # M_TRIM_THRESHOLD
GROW_BY = (-2, 2**28)  # M_TOP_PAD, bytes


def keep_freed_memory() -> None:
    """Let new tensors take the memory of freed ones, instead of fresh pages of the kernel's.

    glibc returns large blocks to the kernel, which fills every page with zeros before it gives it
    out again: at 128 pixels that is 35 % of the processor time of the attacks' checks
    (benchmarks/README.md). Other C libraries have no such options; there nothing happens. For a
    process that ends with its work.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (ONE_HEAP_FOR_ALL_THREADS, NO_BLOCK_APART, NEVER_SHRINK, GROW_BY):
            mallopt(*option)
