"""Seeded sampling: random generators by position, and the order in which an epoch visits its rows.

A generator is a pure function of the seed, the purpose and a position such as (epoch, sample). So no number depends on
which worker draws it or in which order, and a resumed run needs no generator state. Shapes: `N` rows of a split, `B`
rows of a batch, `K` complete batches of an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cleft.grammar import agree, count, share, verb
from cleft.types import Record


class Stream(IntEnum):
    """Purposes of random numbers. Results depend on the values, so never change them."""

    ORDER = 1
    AUGMENT = 2
    PHANTOM = 3
    DISTINCT = 4
    SENTENCE = 5
    BANK = 6
    WORDS = 7


def philox_generator(seed: int, stream: Stream, major: int, minor: int = 0) -> np.random.Generator:
    """Return the generator of a position, at its beginning.

    Philox is a keyed function of a counter; the position is the upper half of the counter, so each position
    has 2^128 numbers.

    Args:
        seed: Any integer; taken modulo 2^64.
        stream: Purpose of the numbers.
        major: First coordinate of the position, such as the epoch.
        minor: Second coordinate, such as the sample.

    Example:
        >>> first, again = (philox_generator(0, Stream.AUGMENT, 3, 17).random() for _ in range(2))
        >>> first == again
        True
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    counter = np.array([0, 0, major, minor], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


Distinct: TypeAlias = Literal["none", "patients", "captions"]


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a random order of `n` rows for an epoch, `[n]`."""
    return np.argsort(philox_generator(seed, Stream.ORDER, epoch).random(n), kind="stable")


def distinct_order(groups: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return an order whose batches repeat groups as rarely as possible.

    The groups are put in a random order, the rows of each one after the other. They are dealt in rounds of one row to
    each of the `K` batches, in a random order of batches per round. So the rows of a group are in different batches
    until every batch has one. A group that continues in the next round gets first the batches that it did not get in
    this one.

    Args:
        groups: Group of each row, from 0, `[N]`.
        batch_size: `B`, at most `N`.
        seed: Seed of the run.
        epoch: Counted from 0.

    Returns:
        Every row once, `[N]`. The last `N % B`, which do not fill a batch, are a uniform sample of all rows.
    """
    n = len(groups)
    k = n // batch_size
    rng = philox_generator(seed, Stream.DISTINCT, epoch)
    shuffled = rng.permutation(n)
    rows, left = shuffled[: k * batch_size], shuffled[k * batch_size :]
    ranks = rng.permutation(int(groups.max()) + 1)[groups[rows]]
    rows = rows[np.argsort(ranks, kind="stable")].reshape(batch_size, k)
    dealt = np.empty_like(rows)
    open_group, ahead = -1, np.empty(0, np.int64)  # The last group, and the batches that have one row more of it.
    for number, row in enumerate(rows):
        owners, deal = groups[row], rng.permutation(k)
        if owners[0] == open_group:
            deal = _spare(deal, ahead, _run(owners))
        dealt[number, deal] = row
        if owners[-1] != open_group:
            open_group, ahead = owners[-1], deal[k - _run(owners[::-1]) % k :]
    return np.concatenate([rng.permuted(dealt.T, axis=1).ravel(), left])


def group_rows(records: Sequence[Record], distinct: Distinct) -> NDArray[np.int64] | None:
    """Number what a batch should not repeat, `[N]`; None if nothing."""
    if distinct == "none":
        return None
    known: dict[str | None, int] = {}
    names = (record.patient if distinct == "patients" else record.caption for record in records)
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def repeat_note(records: Sequence[Record], distinct: Distinct, batch_size: int) -> str:
    """Return a sentence about repetitions that no order can avoid; empty if there are none."""
    groups = group_rows(records, distinct)
    batches = len(records) // batch_size
    sizes = np.bincount(groups) if groups is not None else np.empty(0, np.int64)
    more = sizes[sizes > batches]
    if not len(more):
        return ""
    several = share(len(more), len(sizes), distinct.removesuffix("s"))
    repeated = int((more - batches).sum())
    return (
        f"train.unique_in_batch={distinct}: {several} {verb(len(more), 'has', 'have')} more images than an epoch has "
        f"batches ({batches:,}; the most frequent has {more.max():,}), so about {count(repeated, 'image')} per epoch "
        + agree(repeated, "[repeats|repeat] one in [its|their] batch, spread as evenly as possible")
    )


def _spare(deal: NDArray[np.int64], ahead: NDArray[np.int64], needed: int) -> NDArray[np.int64]:
    """Move batches that are not ahead to the first `needed` positions of a deal; the others keep their random order."""
    first = np.flatnonzero(~np.isin(deal, ahead))[:needed]
    return np.concatenate([deal[first], np.delete(deal, first)])


def _run(groups: NDArray[np.int64]) -> int:
    """Return how many of the first entries are equal."""
    other = groups != groups[0]
    return int(other.argmax()) if other.any() else len(groups)
