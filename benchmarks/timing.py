"""Timing that other load on the machine disturbs as little as possible.

On a CPU with one thread the time is process CPU time, without other programs. On a GPU it is the time between two
events. Variants are interleaved within each round, so that a slow minute affects all of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Spread(NamedTuple):
    """Seconds of a few runs of the same work."""

    least: float
    median: float
    most: float


def seconds(work: Work, device: torch.device, repeat: int = 1) -> float:
    """Returns the seconds of one run, the mean of `repeat` runs in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeat):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat
    # Process time adds up over threads, so several threads need wall-clock time.
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    for _ in range(repeat):
        work()
    return (now() - start) / repeat


def interleave(
    works: Mapping[str, Work], device: torch.device, *, rounds: int, warm_up: int = 0, repeat: int = 1
) -> dict[str, Spread]:
    """Times several functions, interleaved.

    Args:
        works: Name to function.
        device: Where they run.
        rounds: Measurements of each.
        warm_up: Runs of each before the first measurement.
        repeat: Runs per measurement; a GPU needs several, because they overlap.
    """
    for work in works.values():
        for _ in range(warm_up):
            work()
    turns = [{name: seconds(work, device, repeat) for name, work in works.items()} for _ in range(rounds)]
    return {name: spread([turn[name] for turn in turns]) for name in works}


def spread(values: list[float]) -> Spread:
    """Returns minimum, median and maximum."""
    return Spread(min(values), statistics.median(values), max(values))


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the floating point operations per second of a large matrix product, an upper bound for all variants."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    runs = interleave({"product": lambda: left @ right}, device, rounds=5, warm_up=3, repeat=10)
    return 2 * size**3 / runs["product"].least


def machine(device: torch.device) -> str:
    """Returns a one-line description of the device."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    threads = torch.get_num_threads()
    clock = "process CPU time" if threads == 1 else "wall clock"
    load = os.getloadavg()[0]
    return (
        f"CPU ({torch.backends.cpu.get_cpu_capability()}), {threads} thread(s), {clock}, load {load:.1f} at the start"
    )
