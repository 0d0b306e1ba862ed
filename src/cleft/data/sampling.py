"""Random numbers that are counted, not carried.

A draw is a pure function of the seed, the purpose and a position such as (epoch, sample). So nothing depends on
which worker asks or in which order, and a resumed run needs no generator state: its step says it all.
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
    """What the numbers are for. Streams of one seed never meet; the values are part of every result, so keep them."""

    ORDER = 1
    AUGMENT = 2
    PHANTOM = 3
    DISTINCT = 4
    SENTENCE = 5
    BANK = 6
    WORDS = 7


def philox_generator(seed: int, stream: Stream, major: int, minor: int = 0) -> np.random.Generator:
    """Returns the generator that belongs to a position, at its beginning.

    Philox is a keyed function of a counter; the position is the upper half of the counter, so each position
    has 2^128 numbers of its own.

    Args:
        seed: Any integer; taken modulo 2^64.
        stream: What the numbers are for.
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
    """Returns the order in which an epoch visits its `n` rows, `[n]`."""
    return np.argsort(philox_generator(seed, Stream.ORDER, epoch).random(n), kind="stable")


def distinct_order(groups: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns an order whose batches repeat no group where that is possible, and as rarely as possible elsewhere.

    Rows are dealt like cards: groups in a random order, the rows of a group behind each other, one to each of the `K`
    batches in turn, in an order of batches that is drawn anew for each round. So the rows of a group fall into
    different batches until every batch has one. A group that goes on into the next round first gets the batches that
    it did not get in this one.

    Args:
        groups: Which group each row belongs to, 0 and up, `[N]`.
        batch_size: `B`, at most `N`.
        seed: Seed of the run.
        epoch: Counted from 0.

    Returns:
        Every row once, `[N]`. The last `N % B`, which fill no batch, are drawn evenly from all of them.
    """
    n = len(groups)
    k = n // batch_size
    rng = philox_generator(seed, Stream.DISTINCT, epoch)
    shuffled = rng.permutation(n)
    rows, left = shuffled[: k * batch_size], shuffled[k * batch_size :]
    places = rng.permutation(int(groups.max()) + 1)[groups[rows]]
    rows = rows[np.argsort(places, kind="stable")].reshape(batch_size, k)
    dealt = np.empty_like(rows)
    open_group, ahead = -1, np.empty(0, np.int64)  # The group dealt last, and the batches that have one more of it.
    for number, row in enumerate(rows):
        owners, deal = groups[row], rng.permutation(k)
        if owners[0] == open_group:
            deal = _spare(deal, ahead, _run(owners))
        dealt[number, deal] = row
        if owners[-1] != open_group:
            open_group, ahead = owners[-1], deal[k - _run(owners[::-1]) % k :]
    return np.concatenate([rng.permuted(dealt.T, axis=1).ravel(), left])


def group_rows(records: Sequence[Record], distinct: Distinct) -> NDArray[np.int64] | None:
    """Numbers what a batch shall not repeat, `[N]`; None where that is nothing."""
    if distinct == "none":
        return None
    known: dict[str | None, int] = {}
    names = (record.patient if distinct == "patients" else record.caption for record in records)
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def repeat_note(records: Sequence[Record], distinct: Distinct, batch_size: int) -> str:
    """Returns a sentence about what no order can avoid; empty where batches repeat nothing."""
    groups = group_rows(records, distinct)
    batches = len(records) // batch_size
    sizes = np.bincount(groups) if groups is not None else np.empty(0, np.int64)
    more = sizes[sizes > batches]
    if not len(more):
        return ""
    several = share(len(more), len(sizes), distinct.removesuffix("s"))
    meeting = int((more - batches).sum())
    return (
        f"train.unique_in_batch={distinct}: {several} {verb(len(more), 'has', 'have')} more images than an epoch has "
        f"batches ({batches:,}; the commonest has {more.max():,}), so about {count(meeting, 'image')} an epoch "
        + agree(
            meeting, "[meets|meet] another of theirs in [its|their] batch; [it is|they are] spread as evenly as can be"
        )
    )


def _spare(deal: NDArray[np.int64], ahead: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Moves batches that are not ahead to the first `wanted` places of a deal; all else keeps its order by chance."""
    first = np.flatnonzero(~np.isin(deal, ahead))[:wanted]
    return np.concatenate([deal[first], np.delete(deal, first)])


def _run(groups: NDArray[np.int64]) -> int:
    """How many of the first entries are the same."""
    other = groups != groups[0]
    return int(other.argmax()) if other.any() else len(groups)
