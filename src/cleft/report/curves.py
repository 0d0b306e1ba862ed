"""Training curves: the loss large, whatever else was logged small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.figures import Points, line_chart, swatch
from cleft.report.runs import Run

TOKENS = "tokens"
LINES = {"nodes": (TOKENS, "prefix tree"), "padded_tokens": (TOKENS, "padded")}
"""Logged quantities that share a chart: name to chart and line."""
ORDER = ("loss", "lr", "temperature", "gradient_norm", TOKENS)
SPLITS = {"train": "training", "val": "validation"}
NAMES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "logit_scale": "Inverse temperature",
    "temperature": "Temperature",
    "gradient_norm": "Gradient norm",
    TOKENS: "Caption tokens of a step",
    "repeated_captions": "Share of repeated captions",
    "clamped_steps": "Steps with a clamped temperature",
    "seconds_per_step": "Seconds per step",
}


class Chart(NamedTuple):
    """One figure of a run's training."""

    title: str
    figure: Markup
    legend: Sequence[tuple[Markup, str]]
    caption: str
    large: bool


def training_charts(run: Run) -> list[Chart]:
    """One chart per logged quantity, its splits together, the loss first; what never changed needs no chart."""
    quantities: dict[str, dict[str, Points]] = {}
    for name, points in run.curves.items():
        quantity, split = _parts(name)
        quantities.setdefault(quantity, {})[split] = points
    ordered = sorted(quantities, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [_chart(name, quantities[name]) for name in ordered if name == "loss" or _moves(quantities[name])]


def _moves(series: Mapping[str, Points]) -> bool:
    return len({value for points in series.values() for _, value in points}) > 1


def _chart(quantity: str, series: Mapping[str, Points]) -> Chart:
    title = NAMES.get(quantity, quantity.replace("_", " ").capitalize())
    named = dict(sorted(series.items(), key=lambda item: item[0] != "training"))
    large = quantity == "loss"
    best = min(named["validation"], key=lambda point: point[1]) if large and "validation" in named else None
    caption = ""
    if best is not None:
        caption = f"Lowest validation loss {best[1]:.4g} at step {best[0]:,.0f} (ringed)."
    legend = [(swatch(index), name) for index, name in enumerate(named)] if len(named) > 1 else []
    figure = line_chart(f"{title} over optimiser steps", named, mark=best, large=large)
    return Chart(title, figure, legend, caption, large)


def _parts(name: str) -> tuple[str, str]:
    """Quantity and split of a logged name.

    Example:
        >>> _parts("val/loss"), _parts("lr-AdamW")
        (('loss', 'validation'), ('lr-AdamW', ''))
    """
    head, _, tail = name.rpartition("/")
    if tail in LINES:
        return LINES[tail]
    split = next((SPLITS[part] for part in head.split("/") if part in SPLITS), head)
    return tail, split
