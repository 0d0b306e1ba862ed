"""Random numbers that are counted, not carried.

A draw is a pure function of the seed, the purpose and a position such as (epoch, sample). So nothing depends on
which worker asks or in which order, and a resumed run needs no generator state: its step says it all.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for. Streams of one seed never meet; the values are part of every result, so keep them."""

    ORDER = 1
    AUGMENT = 2
    PHANTOM = 3
    DISTINCT = 4
    SENTENCE = 5
    BANK = 6
    WORDS = 7


def counted(seed: int, stream: Stream, major: int, minor: int = 0) -> np.random.Generator:
    """Returns the generator that belongs to a position, at its beginning.

    Philox is a keyed function of a counter; the position is the upper half of the counter, so each position
    has 2^128 numbers of its own.

    Args:
        seed: Any integer; taken modulo 2^64.
        stream: What the numbers are for.
        major: First coordinate of the position, such as the epoch.
        minor: Second coordinate, such as the sample.

    Example:
        >>> first, again = (counted(0, Stream.AUGMENT, 3, 17).random() for _ in range(2))
        >>> first == again
        True
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    counter = np.array([0, 0, major, minor], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
