"""Peak memory of a function above the memory before.

On a GPU the allocator counts it. On a CPU every tensor is counted from its creation until it is freed, forward and
backward; scratch space inside a kernel is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Peak(NamedTuple):
    """Peak bytes."""

    above: int
    """Above the memory before the run."""
    allocated: int | None = None
    """All tensors on a GPU, weights included."""
    reserved: int | None = None
    """Reserved by the allocator on a GPU."""


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors created inside it.

    Attributes:
        live: Bytes alive now.
        peak: Most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._counted: dict[int, object] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts the new storages of its result."""
        old = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = id(storage), storage.nbytes()
            if key not in old and key not in self._counted:
                self.live += size
                self.peak = max(self.peak, self.live)
                self._counted[key] = weakref.finalize(storage, self._free, key, size)
        return result

    def _free(self, key: int, size: int) -> None:
        self.live -= size
        del self._counted[key]


def peak_of(work: Callable[[], object], device: torch.device) -> Peak:
    """Runs a function once and returns its peak memory."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_allocated(device)
        return Peak(most - before, most, torch.cuda.max_memory_reserved(device))
    with Meter() as meter:
        work()
    return Peak(meter.peak)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor)]
