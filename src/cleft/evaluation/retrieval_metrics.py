"""How well a search finds what is right, when several answers are right; and what guessing would find.

A query and a candidate each carry two marks. Equal *keys* are right answers: recall and ranks ask for the first of
these. Sets of *findings* that share one are relevant: precision counts these. Candidates of the query's own *owner*
(its patient) are never answers. Where a wrong candidate lies exactly as near as a right one, the wrong one comes first.

Similarities are computed block by block and forgotten, so that 200,000 images need no table of 200,000 by 200,000.

Shapes: `Q` queries, `M` candidates, `E` joint dimension, `S` distinct sets of findings, `N` images, `R` resamples, `K`
most answers that are looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from cleft.evaluation.metrics import Floats, Statistic

CUTOFFS = (1, 5, 10)
"""How many answers are looked at."""
_CELLS = 16_000_000  # similarities of one block: 64 MB


class Items(NamedTuple):
    """Embeddings, and what makes one the answer to another."""

    embeds: Tensor
    """Unit-length rows, `[Q or M, E]`."""
    key: NDArray[np.int64]
    """Equal keys are right answers to each other."""
    findings: NDArray[np.int64]
    """Number of each one's set of findings."""
    owner: NDArray[np.int64]
    """Patient of each, or numbers that occur nowhere else: candidates of the query's own owner are left out."""


class SearchResult(NamedTuple):
    """What a search found, query by query."""

    first_match: NDArray[np.int64]
    """Place of the first right answer, from 1; 0 where there is no right answer, `[Q]`."""
    top: NDArray[np.int64]
    """The nearest candidates, the nearest first, `[Q, K]`; -1 behind the last one."""
    relevant: NDArray[np.bool_]
    """Whether each of `top` shares a finding with the query, `[Q, K]`."""
    candidates: NDArray[np.int64]
    """How many candidates were searched, `[Q]`."""
    matches: NDArray[np.int64]
    """How many of them are right, `[Q]`."""
    relevant_total: NDArray[np.int64]
    """How many of them share a finding, `[Q]`."""


def search(queries: Items, candidates: Items, shared: NDArray[np.bool_]) -> SearchResult:
    """Looks for the nearest candidates of each query.

    Args:
        queries: What is asked, `Q`.
        candidates: What is searched, `M`.
        shared: Whether two sets of findings share one, `[S, S]`; two empty sets do.
    """
    device = queries.embeds.device
    block = max(1, _CELLS // max(1, len(candidates.key)))
    depth = min(CUTOFFS[-1], len(candidates.key))
    key, findings, owner = _on(device, candidates, slice(None))
    alike = torch.from_numpy(shared).to(device)
    parts: list[list[Tensor]] = []
    for start in range(0, len(queries.key), block):
        rows = slice(start, start + block)
        asked_key, asked_findings, asked_owner = _on(device, queries, rows)
        near = queries.embeds[rows].float() @ candidates.embeds.float().T  # [block, M]
        own = asked_owner[:, None] == owner
        near.masked_fill_(own, -torch.inf)
        right = (asked_key[:, None] == key) & ~own
        related = alike[asked_findings][:, findings] & ~own
        best = near.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        before = ((near >= best) & ~right & ~own).sum(dim=1)
        top = _nearest(near, right.int() + related.int(), depth)
        nothing = own.gather(1, top)
        parts.append(
            [
                torch.where(right.any(dim=1), before + 1, 0),
                top.masked_fill(nothing, -1),
                related.gather(1, top),
                (~own).sum(dim=1),
                right.sum(dim=1),
                related.sum(dim=1),
            ]
        )
    joined = [torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True)]
    return SearchResult(*joined)


def sets_share_finding(sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether two sets of findings share one, `[S, S]`; two sets of nothing do.

    Args:
        sets: Findings of each set, `[S, C]`.
    """
    numbers = sets.astype(np.int32)
    empty = numbers.sum(axis=1) == 0
    return (numbers @ numbers.T > 0) | (empty[:, None] & empty)


def select_queries(found: SearchResult, queries: NDArray[np.intp]) -> SearchResult:
    """What was found for some of the queries."""
    return SearchResult(
        found.first_match[queries],
        found.top[queries],
        found.relevant[queries],
        found.candidates[queries],
        found.matches[queries],
        found.relevant_total[queries],
    )


def recall(found: SearchResult, k: int, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Share of queries with a right answer among the first `k`.

    Args:
        found: Of queries that all have one.
        k: How many answers are looked at.
        query_of: Query that each image stands behind, `[N]`; a query counts by the share of its images that are drawn.
            By default image i is query i.
    """
    return _mean((found.first_match <= k).astype(np.float64), query_of)


def precision(found: SearchResult, k: int, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Mean share of the first `k` answers that share a finding with the query; as `recall`."""
    return _mean(found.relevant[:, :k].mean(axis=1), query_of)


def mean_rank(found: SearchResult, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Mean place of the first right answer; as `recall`."""
    return _mean(found.first_match.astype(np.float64), query_of)


def median_rank(found: SearchResult, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """The smallest place at which at least half of the queries have found a right answer; as `recall`."""
    order = np.argsort(found.first_match, kind="stable")
    ranks = found.first_match[order].astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        weighed = _weighed(counts, query_of)[:, order]
        reached = np.cumsum(weighed, axis=1)
        whole = reached[:, -1:]
        first = np.argmax(reached >= whole / 2 - 1e-9, axis=1)
        return np.where(whole[:, 0] > 0, ranks[first], np.nan)

    return statistic


def chance(found: SearchResult) -> dict[str, float]:
    """What an order drawn at random finds on average, computed and not drawn.

    Returns:
        `recall@k`, `precision@k`, `mean-rank` and `median-rank`.

    Example:
        >>> one, none = np.array([1]), np.zeros((1, 1), dtype=np.int64)
        >>> found = chance(SearchResult(one, none, none > 0, candidates=one * 4, matches=one, relevant_total=one * 2))
        >>> round(found["recall@1"], 6), found["precision@5"], found["mean-rank"], found["median-rank"]
        (0.25, 0.5, 2.5, 2.0)
    """
    candidates, right = found.candidates.astype(np.float64), found.matches.astype(np.float64)
    pairs, times = np.unique(np.stack([candidates, right], axis=1), axis=0, return_counts=True)

    def reached(k: int) -> float:
        """Mean probability that one of the right answers is among the first k."""
        return float((times * (1 - _missed(pairs[:, 0], pairs[:, 1], k))).sum() / times.sum())

    low, high = 1, int(candidates.max(initial=1))
    while low < high:  # the smallest place that half of the queries reach
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= 0.5 - 1e-9 else (middle + 1, high)
    return {
        **{f"recall@{k}": reached(k) for k in CUTOFFS},
        **{f"precision@{k}": float((found.relevant_total / found.candidates).mean()) for k in CUTOFFS},
        "mean-rank": float(((candidates + 1) / (right + 1)).mean()),
        "median-rank": float(low),
    }


def _on(device: torch.device, marked: Items, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Key, findings and owner of some rows."""
    return (
        torch.from_numpy(marked.key[rows]).to(device),
        torch.from_numpy(marked.findings[rows]).to(device),
        torch.from_numpy(marked.owner[rows]).to(device),
    )


def _nearest(near: Tensor, merit: Tensor, depth: int) -> Tensor:
    """The nearest `depth` of each row; of equally near ones those of less merit come first."""
    values, places = near.topk(min(near.shape[1], depth + 1), dim=1)
    tied = ((values[:, 1:] == values[:, :-1]) & torch.isfinite(values[:, 1:])).any(dim=1)
    places = places[:, :depth].clone()
    if bool(tied.any()):
        by_merit = merit[tied].argsort(dim=1, stable=True)
        by_both = near[tied].gather(1, by_merit).argsort(dim=1, descending=True, stable=True)
        places[tied] = by_merit.gather(1, by_both)[:, :depth]
    return places


def _missed(candidates: Floats, right: Floats, k: int) -> Floats:
    """Probability that none of the right answers is among `k` drawn without putting back."""
    wrong = candidates - right
    possible = wrong >= k
    kept = np.where(possible, wrong, k)
    whole = np.maximum(candidates, k)
    logarithm = gammaln(kept + 1) - gammaln(kept - k + 1) - gammaln(whole + 1) + gammaln(whole - k + 1)
    return np.where(possible, np.exp(logarithm), 0.0)


def _mean(values: Floats, query_of: NDArray[np.int64] | None) -> Statistic:
    def statistic(counts: Floats) -> Floats:
        weighed = _weighed(counts, query_of)
        whole = weighed.sum(axis=1)
        return np.divide(weighed @ values, whole, out=np.full(whole.shape, np.nan), where=whole > 0)

    return statistic


def _weighed(counts: Floats, query_of: NDArray[np.int64] | None) -> Floats:
    """How much each query counts, `[R, Q]`."""
    if query_of is None:
        return counts
    order = np.argsort(query_of, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(query_of[order]) > 0])
    return np.add.reduceat(counts[:, order], starts, axis=1) / np.bincount(query_of)
