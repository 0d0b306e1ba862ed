"""Search by cosine similarity, and retrieval metrics with several matches per query.

Each query and candidate has a key and a set of findings. Candidates with the query's key *match*: recall and ranks
refer to the first match. Candidates that share a finding with the query are *relevant*: precision counts these. Items
of the query's own owner (its patient) are not candidates. Of equally similar candidates, those that do not match come
first, so that ties never improve a metric.

Similarities are computed block by block and discarded: 200,000 images need no matrix of 200,000 by 200,000.

Shapes: `Q` queries, `M` candidates, `E` joint dimension, `S` distinct sets of findings, `N` images, `R` resamples, `K`
largest cutoff.
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
"""Values of k in recall@k and precision@k."""
_CELLS = 16_000_000  # similarities of one block: 64 MB


class Items(NamedTuple):
    """Embeddings, with what decides whether they match."""

    embeds: Tensor
    """Unit-length rows, `[Q or M, E]`."""
    key: NDArray[np.int64]
    """Items with equal keys match."""
    findings: NDArray[np.int64]
    """Number of each item's set of findings."""
    owner: NDArray[np.int64]
    """Patient, or a unique number; candidates of the query's owner are excluded."""


class SearchResult(NamedTuple):
    """Search results, query by query."""

    first_match: NDArray[np.int64]
    """Rank of the first match, from 1; 0 without a match, `[Q]`."""
    top: NDArray[np.int64]
    """Most similar candidates in order, `[Q, K]`; -1 after the last one."""
    relevant: NDArray[np.bool_]
    """Whether each of `top` is relevant, `[Q, K]`."""
    candidates: NDArray[np.int64]
    """Number of candidates, `[Q]`."""
    matches: NDArray[np.int64]
    """Number of them that match, `[Q]`."""
    relevant_total: NDArray[np.int64]
    """Number of them that are relevant, `[Q]`."""


def search(queries: Items, candidates: Items, share_finding: NDArray[np.bool_]) -> SearchResult:
    """Ranks the candidates of each query.

    Args:
        queries: Queries, `Q`.
        candidates: Candidates, `M`.
        share_finding: Whether two sets of findings share one, `[S, S]`.
    """
    device = queries.embeds.device
    block = max(1, _CELLS // max(1, len(candidates.key)))
    depth = min(CUTOFFS[-1], len(candidates.key))
    key, findings, owner = _to_tensors(device, candidates, slice(None))
    share = torch.from_numpy(share_finding).to(device)
    blocks: list[list[Tensor]] = []
    for start in range(0, len(queries.key), block):
        rows = slice(start, start + block)
        query_key, query_findings, query_owner = _to_tensors(device, queries, rows)
        similarity = queries.embeds[rows].float() @ candidates.embeds.float().T  # [block, M]
        excluded = query_owner[:, None] == owner
        similarity.masked_fill_(excluded, -torch.inf)
        matches = (query_key[:, None] == key) & ~excluded
        relevant = share[query_findings][:, findings] & ~excluded
        best = similarity.masked_fill(~matches, -torch.inf).amax(dim=1, keepdim=True)
        before = ((similarity >= best) & ~matches & ~excluded).sum(dim=1)
        top = _most_similar(similarity, matches.int() + relevant.int(), depth)
        blocks.append(
            [
                torch.where(matches.any(dim=1), before + 1, 0),
                top.masked_fill(excluded.gather(1, top), -1),
                relevant.gather(1, top),
                (~excluded).sum(dim=1),
                matches.sum(dim=1),
                relevant.sum(dim=1),
            ]
        )
    return SearchResult(*(torch.cat(each).cpu().numpy() for each in zip(*blocks, strict=True)))


def sets_share_finding(sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether two sets of findings share one, `[S, S]`; two empty sets do.

    Args:
        sets: Findings of each set, `[S, C]`.
    """
    numbers = sets.astype(np.int32)
    empty = numbers.sum(axis=1) == 0
    return (numbers @ numbers.T > 0) | (empty[:, None] & empty)


def select_queries(found: SearchResult, queries: NDArray[np.intp]) -> SearchResult:
    """Search results of some of the queries."""
    return SearchResult(
        found.first_match[queries],
        found.top[queries],
        found.relevant[queries],
        found.candidates[queries],
        found.matches[queries],
        found.relevant_total[queries],
    )


def recall(found: SearchResult, k: int, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Share of queries with a match among the first `k`.

    Args:
        found: Results of queries that all have a match.
        k: Cutoff.
        query_of: Query that each image belongs to, `[N]`; a query is weighted by the share of its images in a resample.
            By default image i is query i.
    """
    return _mean((found.first_match <= k).astype(np.float64), query_of)


def precision(found: SearchResult, k: int, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Mean share of relevant candidates among the first `k`; as `recall`."""
    return _mean(found.relevant[:, :k].mean(axis=1), query_of)


def mean_rank(found: SearchResult, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Mean rank of the first match; as `recall`."""
    return _mean(found.first_match.astype(np.float64), query_of)


def median_rank(found: SearchResult, query_of: NDArray[np.int64] | None = None) -> Statistic:
    """Smallest rank within which at least half of the queries have a match; as `recall`."""
    order = np.argsort(found.first_match, kind="stable")
    ranks = found.first_match[order].astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        weights = _query_weights(counts, query_of)[:, order]
        reached = np.cumsum(weights, axis=1)
        total = reached[:, -1:]
        first = np.argmax(reached >= total / 2 - 1e-9, axis=1)
        return np.where(total[:, 0] > 0, ranks[first], np.nan)

    return statistic


def chance(found: SearchResult) -> dict[str, float]:
    """Expected metrics of a random order, in closed form.

    Returns:
        `recall@k`, `precision@k`, `mean-rank` and `median-rank`.

    Example:
        >>> one, none = np.array([1]), np.zeros((1, 1), dtype=np.int64)
        >>> found = chance(SearchResult(one, none, none > 0, candidates=one * 4, matches=one, relevant_total=one * 2))
        >>> round(found["recall@1"], 6), found["precision@5"], found["mean-rank"], found["median-rank"]
        (0.25, 0.5, 2.5, 2.0)
    """
    candidates, matches = found.candidates.astype(np.float64), found.matches.astype(np.float64)
    pairs, times = np.unique(np.stack([candidates, matches], axis=1), axis=0, return_counts=True)

    def recall_at(k: int) -> float:
        return float((times * (1 - _miss_probability(pairs[:, 0], pairs[:, 1], k))).sum() / times.sum())

    low, high = 1, int(candidates.max(initial=1))
    while low < high:  # smallest rank within which half of the queries have a match
        middle = (low + high) // 2
        low, high = (low, middle) if recall_at(middle) >= 0.5 - 1e-9 else (middle + 1, high)
    return {
        **{f"recall@{k}": recall_at(k) for k in CUTOFFS},
        **{f"precision@{k}": float((found.relevant_total / found.candidates).mean()) for k in CUTOFFS},
        "mean-rank": float(((candidates + 1) / (matches + 1)).mean()),
        "median-rank": float(low),
    }


def _to_tensors(device: torch.device, items: Items, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Key, findings and owner of some rows."""
    return (
        torch.from_numpy(items.key[rows]).to(device),
        torch.from_numpy(items.findings[rows]).to(device),
        torch.from_numpy(items.owner[rows]).to(device),
    )


def _most_similar(similarity: Tensor, relevance: Tensor, depth: int) -> Tensor:
    """Indices of the `depth` most similar candidates of each row; equally similar ones by rising relevance."""
    values, places = similarity.topk(min(similarity.shape[1], depth + 1), dim=1)
    tied = ((values[:, 1:] == values[:, :-1]) & torch.isfinite(values[:, 1:])).any(dim=1)
    places = places[:, :depth].clone()
    if bool(tied.any()):
        by_relevance = relevance[tied].argsort(dim=1, stable=True)
        by_both = similarity[tied].gather(1, by_relevance).argsort(dim=1, descending=True, stable=True)
        places[tied] = by_relevance.gather(1, by_both)[:, :depth]
    return places


def _miss_probability(candidates: Floats, matches: Floats, k: int) -> Floats:
    """Probability that none of the matches is among `k` candidates drawn without replacement."""
    others = candidates - matches
    possible = others >= k
    kept = np.where(possible, others, k)
    total = np.maximum(candidates, k)
    logarithm = gammaln(kept + 1) - gammaln(kept - k + 1) - gammaln(total + 1) + gammaln(total - k + 1)
    return np.where(possible, np.exp(logarithm), 0.0)


def _mean(values: Floats, query_of: NDArray[np.int64] | None) -> Statistic:
    def statistic(counts: Floats) -> Floats:
        weights = _query_weights(counts, query_of)
        total = weights.sum(axis=1)
        return np.divide(weights @ values, total, out=np.full(total.shape, np.nan), where=total > 0)

    return statistic


def _query_weights(counts: Floats, query_of: NDArray[np.int64] | None) -> Floats:
    """Weight of each query in each resample, `[R, Q]`."""
    if query_of is None:
        return counts
    order = np.argsort(query_of, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(query_of[order]) > 0])
    return np.add.reduceat(counts[:, order], starts, axis=1) / np.bincount(query_of)
