"""What all measurements share: where and how often, that ways agree before they are timed, and tables."""

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
    """Whether products are computed in bfloat16; weights that move stay float32."""
    rounds: int
    limit: float
    """Seconds that one run may be expected to take; what takes longer is left out and says so."""
    left_out: frozenset[str] = frozenset()
    """Ways not to run, such as those that need more memory than there is."""
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.bfloat16 if self.half else torch.float32

    @property
    def tolerance(self) -> float:
        """Largest difference between two ways, as a share of the length of the vector."""
        return 0.05 if self.half else 2e-5

    def precision(self) -> AbstractContextManager[object]:
        """Computes in bfloat16 where that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def take_turns(self, works: Mapping[str, Callable[[], object]]) -> dict[str, Spread]:
        """Times some works in turns; a card is warmed up and has ten runs per turn."""
        card = self.device.type == "cuda"
        return interleave(works, self.device, rounds=self.rounds, warm_up=10 if card else 0, repeat=10 if card else 1)


class Pass(Protocol):
    """Something that can be run forward and back in several ways."""

    bench: Bench
    weights: list[nn.Parameter]
    """All that move."""

    def __call__(self, way: str) -> Tensor:
        """Returns features or loss; the gradients lie with the weights."""
        ...


class Trial(NamedTuple):
    """The first run of a way."""

    value: Tensor
    """Features or loss, in one vector."""
    gradients: Tensor
    """Of all weights that move, in one vector."""
    peak: Peak
    seconds: float


def try_once(run: Pass, way: str) -> Trial:
    """Runs forward and back once, and keeps what came out and the memory it took."""
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
    """Returns how far each way is from the reference in values and gradients, whichever is further.

    Args:
        trials: Way to its first run.
        reference: The way that the others are held against.
        bench: Says how far is too far.
        untrained: A way of which only values can be compared.

    Raises:
        SystemExit: If one is too far, or the reference has no gradient; then nothing may be timed.
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
    """Length of the difference of two vectors, as a share of the other's."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown without columns that say nothing; all but the first are aligned to the right."""
    columns = [column for column in zip(head, *rows, strict=True) if set(column[1:]) != {"-"}]
    first, *lines = [" | ".join(line) for line in zip(*columns, strict=True)]
    ruler = " | ".join(["---", *["---:"] * (len(columns) - 1)])
    return "\n".join(f"| {line} |" for line in (first, ruler, *lines)) + "\n"


def timed(spread: Spread) -> list[str]:
    """Returns least, median and most as cells."""
    return [number(value) for value in spread]


def number(value: float) -> str:
    """Returns three digits of a number, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory(peak: Peak) -> list[str]:
    """Returns megabytes above what was there, and on a card all that was allocated and reserved."""
    return ["-" if count is None else f"{count / 1e6:,.0f}" for count in peak]


MEMORY = ("peak MB above weights", "allocated MB", "reserved MB")
"""Heads of the cells of `memory`."""
