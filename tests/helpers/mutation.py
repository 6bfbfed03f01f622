"""Random damage to the bytes of a file."""

import numpy as np


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """A few edits: bytes overwritten, inserted, deleted or repeated, bits flipped, the end cut."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 4))):
        start = int(rng.integers(len(damaged) + 1))
        stop = start + int(rng.choice((0, 1, 1, 20)))
        kind = rng.choice(("replace", "flip", "repeat", "cut"), p=(0.5, 0.2, 0.2, 0.1))
        if kind == "replace":
            damaged[start:stop] = rng.bytes(rng.choice((0, 1, 1, 9)))
        elif kind == "flip" and start < len(damaged):
            damaged[start] ^= 1 << int(rng.integers(8))
        elif kind == "repeat":
            damaged[start:start] = damaged[start : start + int(rng.choice((1, 20, 200)))]
        else:
            del damaged[start:]
    return bytes(damaged)
