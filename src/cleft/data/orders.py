"""In which order an epoch visits its rows: by chance, or so that a batch does not repeat a patient or a caption.

Every order is a pure function of the seed and the epoch. Shapes: `N` rows of a split, `B` rows of a batch, `K` whole
batches of an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cleft.data.randomness import Stream, counted
from cleft.grammar import agree, count, share, verb
from cleft.types import Record

Distinct: TypeAlias = Literal["nothing", "patients", "captions"]


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the order in which an epoch visits its `n` rows, `[n]`."""
    return np.argsort(counted(seed, Stream.ORDER, epoch).random(n), kind="stable")


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
    rng = counted(seed, Stream.DISTINCT, epoch)
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
    if distinct == "nothing":
        return None
    known: dict[str | None, int] = {}
    names = (record.patient if distinct == "patients" else record.caption for record in records)
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def say_repeats(records: Sequence[Record], distinct: Distinct, batch_size: int) -> str:
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
        f"train.distinct={distinct}: {several} {verb(len(more), 'has', 'have')} more images than an epoch has "
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
