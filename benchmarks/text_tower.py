"""Measures the text tower, forward and backward: six ways to encode the captions of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor, nn

from bench import AGAIN, MEMORY, Bench, Pass, Trial, largest_errors, memory, number, table, timed, try_once
from captions import Captions, draw_batch
from cleft.config import Settings
from cleft.models.text_tower import TextTower, build_text_tower
from ways import DISTINCT, LONGEST, PADDED, RELEASED, TREE, WAYS, Reader, TextWork

DRAWS = 99
HEAD = (
    "texts encoded as",
    "sequences x tokens",
    "TFLOP",
    "s min",
    "s median",
    "s max",
    "x tree",
    "TFLOP/s",
    "error",
    *MEMORY,
)


def measure_text(settings: Settings, captions: Captions, batches: Sequence[int], bench: Bench, ceiling: float) -> None:
    """Prints one table per batch size."""
    torch.manual_seed(bench.seed)
    tower = build_text_tower(settings.text, captions.texts).to(bench.device).train()
    check_tree(tower)
    stir(tower)
    work = TextWork(settings.text, captions.texts)
    pace: dict[str, float] = {}
    for batch in batches:
        texts, summary = typical_batch(tower, captions, batch, bench.seed)
        print(f"### Text encoder, batch {batch:,}\n\n{summary}\n")
        print(_measure_batch(Reader(tower, texts), work, bench, pace, ceiling), flush=True)


def check_tree(tower: TextTower) -> None:
    """Refuses a tower that does not use the tree by default."""
    if tower.packing != "tree":
        raise SystemExit(
            f"error: by default this tower encodes captions {tower.packing!r}, not as a tree; see the warning"
        )


def stir(module: nn.Module) -> None:
    """Randomises weights that start at zero: half of LoRA's gradients vanish there and could not be compared."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad and not weight.any():
                weight.normal_(std=0.02)


def typical_batch(tower: TextTower, captions: Captions, size: int, seed: int) -> tuple[list[str], str]:
    """Draws batches and returns the one with the median number of nodes, and a summary of all."""
    drawn = [draw_batch(captions, size, seed + number) for number in range(DRAWS)]
    readers = [Reader(tower, texts) for texts in drawn]
    order = sorted(range(DRAWS), key=lambda place: readers[place].shape(TREE).tokens)
    nodes = [readers[place].shape(TREE).tokens for place in order]
    summary = (
        f"Tree nodes in {DRAWS} batches: mean {mean(nodes):.0f}, from {nodes[0]} to {nodes[-1]}; distinct captions: "
        f"mean {mean(len(reader.distinct) for reader in readers):.0f}. Measured on the batch with the median of "
        f"{nodes[DRAWS // 2]} nodes."
    )
    return drawn[order[DRAWS // 2]], summary


class TextPass:
    """A forward and backward pass through the text tower."""

    def __init__(self, reader: Reader, bench: Bench) -> None:
        self.reader = reader
        self.bench = bench
        self.weights = [weight for weight in reader.tower.parameters() if weight.requires_grad]
        generator = torch.Generator().manual_seed(bench.seed)
        self.direction = torch.randn(len(reader.texts), reader.tower.width, generator=generator).to(bench.device)

    def __call__(self, way: str) -> Tensor:
        """Returns the features; gradients are stored in the weights."""
        for weight in self.weights:
            weight.grad = None
        with self.bench.precision():
            features = self.reader.read(way)
        if features.requires_grad:
            (features * self.direction).sum().backward()
        return features


def try_ways(run: Pass, ways: Sequence[str], flops: dict[str, int], pace: dict[str, float]) -> dict[str, Trial]:
    """Runs each variant once, the fastest first, except those left out or expected to take too long.

    Args:
        run: The pass.
        ways: Variants to run.
        flops: Operations of each.
        pace: Seconds per operation of each variant that was run; updated in place.
    """
    if TREE in ways and TREE not in pace:
        run(TREE)  # warm-up: the next pass predicts the time of the others
    trials: dict[str, Trial] = {}
    for way in sorted(ways, key=flops.__getitem__):
        if way not in run.bench.left_out and expected(way, flops, pace) <= run.bench.limit:
            trials[way] = try_once(run, way)
            pace.setdefault(way, trials[way].seconds / flops[way])
    return trials


def expected(way: str, flops: dict[str, int], pace: dict[str, float]) -> float:
    """Returns the expected seconds of a variant at its own pace, or at the tree's if it was not run yet."""
    return flops[way] * pace.get(way, pace.get(TREE, 0.0))


def reference_of(trials: dict[str, Trial]) -> str:
    """Returns the simplest variant that was run: padded texts, as far as time allowed."""
    candidates = [way for way in (PADDED, LONGEST, DISTINCT) if way in trials]
    if not candidates:
        raise SystemExit("error: nothing to compare the tree with; set a longer --limit")
    return candidates[0]


def _measure_batch(reader: Reader, work: TextWork, bench: Bench, pace: dict[str, float], ceiling: float) -> str:
    flops = {way: work.flops(reader.shape(way), way) for way in WAYS}
    run = TextPass(reader, bench)
    trials = try_ways(run, WAYS, flops, pace)
    reference = reference_of(trials)
    errors = largest_errors(trials, reference, bench, untrained=RELEASED)
    works = {way: lambda way=way: run(way) for way in trials}
    spreads = bench.take_turns({**works, TREE + AGAIN: works[TREE]})
    pace.update({way: spreads[way].median / flops[way] for way in trials})
    rows: list[list[str]] = []
    for way in (*WAYS, TREE + AGAIN):
        plain = way.removesuffix(AGAIN)
        shape = reader.shape(plain)
        row = [way, f"{shape.sequences:,} x {shape.length:,}", number(flops[plain] / 1e12)]
        if way in spreads:
            speed = flops[plain] / spreads[way].median
            share = f"{number(speed / 1e12)} ({speed / ceiling:.0%})"
            ratio = number(spreads[way].median / spreads[TREE].median)
            error = "reference" if way == reference else f"{errors[plain]:.0e}"
            rows.append([*row, *timed(spreads[way]), ratio, share, error, *memory(trials[plain].peak)])
        else:
            guess = expected(way, flops, pace)
            ratio = f"{number(guess / spreads[TREE].median)} extrapolated"
            rows.append([*row, "-", f"not run; {number(guess)} extrapolated", "-", ratio, *"-----"])
    return table(HEAD, rows)
