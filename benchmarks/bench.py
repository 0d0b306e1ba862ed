"""Shared parts of all benchmarks: device and rounds, agreement of variants before timing, and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from memory import Peak, peak_of
from timing import Spread, interleave, seconds

AGAIN = " (again)"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how often to measure."""

    device: torch.device
    half: bool
    """Whether products are computed in bfloat16; trainable weights stay float32."""
    rounds: int
    limit: float
    """Longest expected seconds of a run; slower variants are not run, and extrapolated."""
    left_out: frozenset[str] = frozenset()
    """Variants not to run, such as those that need too much memory."""
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Data type of matrix products."""
        return torch.bfloat16 if self.half else torch.float32

    @property
    def tolerance(self) -> float:
        """Largest difference between two variants, relative to the norm of the vector."""
        return 0.05 if self.half else 2e-5

    def precision(self) -> AbstractContextManager[object]:
        """Returns the autocast context: bfloat16 where `half` is set."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def take_turns(self, works: Mapping[str, Callable[[], object]]) -> dict[str, Spread]:
        """Times functions, interleaved; on a GPU with warm-up and ten runs per measurement."""
        gpu = self.device.type == "cuda"
        return interleave(works, self.device, rounds=self.rounds, warm_up=10 if gpu else 0, repeat=10 if gpu else 1)


class Pass(Protocol):
    """A forward and backward pass with several variants."""

    bench: Bench
    weights: list[nn.Parameter]
    """Trainable weights."""

    def __call__(self, way: str) -> Tensor:
        """Returns features or loss; gradients are stored in the weights."""
        ...


class Trial(NamedTuple):
    """The first run of a variant."""

    value: Tensor
    """Features or loss, in one vector."""
    gradients: Tensor
    """Of all trainable weights, in one vector."""
    peak: Peak
    seconds: float


def try_once(run: Pass, way: str) -> Trial:
    """Runs forward and backward once and returns value, gradients, memory and time."""
    device = run.bench.device
    for weight in run.weights:
        weight.grad = None
    values: list[Tensor] = []
    peaks: list[Peak] = []
    took = seconds(lambda: peaks.append(peak_of(lambda: values.append(run(way)), device)), device)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in run.weights]
    vector = torch.cat([gradient.detach().float().flatten() for gradient in gradients]).cpu()
    return Trial(values[0].detach().float().flatten().cpu(), vector, peaks[0], took)


def largest_errors(
    trials: Mapping[str, Trial], reference: str, bench: Bench, *, untrained: str | None = None
) -> dict[str, float]:
    """Returns the larger relative error of values and gradients of each variant.

    Args:
        trials: Variant to its first run.
        reference: The variant that the others are compared with.
        bench: Has the tolerance.
        untrained: A variant without gradients: only values are compared.

    Raises:
        SystemExit: If an error is too large, or the reference has no gradient.
    """
    want = trials[reference]
    if not want.gradients.any():
        raise SystemExit(f"error: {reference!r} has no gradient; nothing was timed")
    errors: dict[str, float] = {}
    for way, trial in trials.items():
        pairs = [(trial.value, want.value)]
        pairs += [] if way == untrained else [(trial.gradients, want.gradients)]
        errors[way] = torch.tensor([distance(one, other) for one, other in pairs]).max().item()  # NaN stays NaN
        if not errors[way] <= bench.tolerance:
            raise SystemExit(f"error: {way!r} differs from {reference!r} by {errors[way]:.1e}; nothing was timed")
    return errors


def distance(one: Tensor, other: Tensor) -> float:
    """Returns the norm of the difference of two vectors, relative to the second."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table without empty columns; all but the first are right-aligned."""
    columns = [column for column in zip(head, *rows, strict=True) if set(column[1:]) != {"-"}]
    first, *lines = [" | ".join(line) for line in zip(*columns, strict=True)]
    ruler = " | ".join(["---", *["---:"] * (len(columns) - 1)])
    return "\n".join(f"| {line} |" for line in (first, ruler, *lines)) + "\n"


def timed(spread: Spread) -> list[str]:
    """Returns minimum, median and maximum as cells."""
    return [number(value) for value in spread]


def number(value: float) -> str:
    """Returns three digits of a number, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory(peak: Peak) -> list[str]:
    """Returns megabytes above the start, and on a GPU the total allocated and reserved."""
    return ["-" if count is None else f"{count / 1e6:,.0f}" for count in peak]


MEMORY = ("peak MB above weights", "allocated MB", "reserved MB")
"""Heads of the cells of `memory`."""
