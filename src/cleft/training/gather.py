"""Rows of all ranks together, with gradients that find their way back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=tuple[Any, ...])


def gather(share: Tensor) -> Tensor:
    """Joins every rank's rows in the order of ranks; alone, returns what it was given.

    Each rank computes the loss of the whole batch. The gradients that all ranks send to a row are added up, and data
    parallelism then divides by the number of ranks: what remains is the gradient that one process would have. Putting
    one's own rows back after a gather without gradient would leave it divided by the number of ranks.

    Args:
        share: This rank's rows, `[b, ...]`; as many on every rank.

    Returns:
        `[ranks * b, ...]`.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return share
    gathered = _Gather.apply(share)
    assert isinstance(gathered, Tensor)
    return gathered


def gather_rows(read: Rows) -> Rows:
    """Joins what every rank has read, each tensor of a named tuple as `gather` does.

    Ranks may have read a second axis of another length, such as the words of their longest text: it is filled up with
    zeros to the longest. What is no tensor is the same on all ranks and stays.
    """
    return type(read)(*(gather(_as_long(part)) if isinstance(part, Tensor) else part for part in read))


def _as_long(share: Tensor) -> Tensor:
    if share.ndim < 2 or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return share
    longest = torch.tensor(share.shape[1], device=share.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - share.shape[1]
    return torch.cat([share, share.new_zeros(len(share), missing, *share.shape[2:])], dim=1) if missing else share


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
