"""Figures as SVG text, written by hand: a few kilobytes each, in the page's own type, sharp on paper.

Series differ by colour *and* by dash, so that a page printed in gray still tells them apart. The colours are Okabe
and Ito's, which readers with any colour vision can distinguish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#7a6a00", "#333333")
SOFT, INK = "#56606b", "#171a1f"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")


class Box(NamedTuple):
    """Where a plot's axes lie in its picture, and what they span."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Place of a value in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the i-th series; they repeat only after all pairs are used."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def swatch(index: int) -> Markup:
    """The line of a legend."""
    colour, dash = style(index)
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true"><path d="M1 4H29" stroke="{}" '
        'stroke-dasharray="{}"/></svg>'
    ).format(colour, dash)


def line_chart(
    title: str, series: Mapping[str, Points], *, mark: tuple[float, float] | None = None, large: bool = True
) -> Markup:
    """Quantities over optimiser steps.

    Args:
        title: Read aloud in place of the picture.
        series: Name to points (step, value); the first names come first in colour.
        mark: A point to ring, such as the best checkpoint.
        large: Whether the picture is as wide as half a page, or a quarter.
    """
    points = [point for line in series.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    start = 0.0 if 0 <= first < last / 4 else first
    x_ticks = [tick for tick in ticks(start, last, most=6 if large else 4) if start <= tick <= last]
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), most=5 if large else 3)
    width, height = (480, 240) if large else (240, 150)
    span = (start, last) if last > start else (start - 0.5, start + 0.5)
    box = Box(46, 10, width - 70, height - 50, span, (y_ticks[0], y_ticks[-1]))
    parts = [grid(box, x_ticks, y_ticks)]
    parts += [_line(box, line, index, dots=len(line) <= 25) for index, line in enumerate(series.values())]
    if mark is not None:
        x, y = box.at(*mark)
        parts.append(Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="6"/>').format(x, y))
    foot = Markup('<text class="axis" x="{}" y="{}" text-anchor="end">optimiser steps</text>')
    parts.append(foot.format(box.left + box.width, height - 6))
    return svg(title, width, height, parts)


def roc_chart(title: str, curves: Sequence[tuple[int, Points]]) -> Markup:
    """ROC curves of one class, one per model, and the diagonal that tells nothing.

    Args:
        title: Read aloud in place of the picture.
        curves: Index of the series, for colour and dash, and points (false positive rate, true positive rate).
    """
    box = Box(30, 8, 160, 160, (0, 1), (0, 1))
    parts = [grid(box, [0, 0.5, 1], [0, 0.5, 1])]
    (x0, y0), (x1, y1) = box.at(0, 0), box.at(1, 1)
    parts.append(
        Markup('<path class="chance" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x0, y0, x1, y1),
    )
    parts += [_line(box, points, index, dots=False) for index, points in curves]
    parts.append(Markup('<text class="axis" x="190" y="197" text-anchor="end">false positive rate</text>'))
    return svg(title, 200, 202, parts)


def whisker(
    value: float,
    interval: tuple[float, float] | None,
    span: tuple[float, float],
    *,
    kind: str,
    colour: str,
    level: float,
) -> Markup:
    """A number and its interval as a shape on a band; the shape tells a model, a floor and the paper apart.

    Args:
        value: In [0, 1].
        interval: Both ends, or None.
        span: What the line reaches from and to; equal for all rows of a column.
        kind: `model` filled circle, `mean` filled diamond, `floor` hollow square, `paper` hollow diamond.
        colour: Of the shape and its band.
        level: Where to draw the thin line of chance.
    """
    box = _whisker_box(span)
    parts: list[Markup] = [Markup('<path class="rail" d="M{} 6H{}"/>').format(box.left, box.left + box.width)]
    if span[0] <= level <= span[1]:
        parts.append(Markup('<path class="level" d="M{:.1f} 1V11"/>').format(box.at(level, 0)[0]))
    if interval is not None:
        low, high = (box.at(end, 0)[0] for end in interval)
        parts.append(Markup('<path class="reach" stroke="{}" d="M{:.1f} 6H{:.1f}"/>').format(colour, low, high))
    parts.append(shape(kind, box.at(value, 0)[0], colour))
    return Markup('<svg class="whisker" viewBox="0 0 140 12" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def shape(kind: str, x: float, colour: str) -> Markup:
    """The mark of a number, around the middle of a whisker."""
    if kind == "floor":
        return Markup('<rect x="{:.1f}" y="3.2" width="5.6" height="5.6" fill="#fff" stroke="{}"/>').format(
            x - 2.8, colour
        )
    if kind in ("paper", "mean"):
        fill = colour if kind == "mean" else "#fff"
        return Markup('<path d="M{:.1f} 2l4 4l-4 4l-4 -4z" fill="{}" stroke="{}"/>').format(x, fill, colour)
    return Markup('<circle cx="{:.1f}" cy="6" r="3" fill="{}"/>').format(x, colour)


def key(kind: str, colour: str) -> Markup:
    """A mark by itself, for the explanation under a table."""
    return Markup('<svg class="sign" viewBox="0 0 30 12" aria-hidden="true">{}{}</svg>').format(
        Markup('<path class="reach" stroke="{}" d="M2 6H28"/>').format(colour) if kind in ("model", "mean") else "",
        Markup('<path class="level" d="M15 1V11"/>') if kind == "level" else shape(kind, 15, colour),
    )


def _whisker_box(span: tuple[float, float]) -> Box:
    return Box(5, 0, 130, 12, span, (0, 1))


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers that enclose a range.

    Example:
        >>> ticks(0.3, 3.9, most=5)
        [0, 1, 2, 3, 4]
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (most - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(index * step, 10) for index in range(first, last + 1)]
    return [int(value) if value == int(value) else value for value in values]


def grid(box: Box, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
    """Lines at heights, and numbers along both axes."""
    parts: list[Markup] = []
    for value in y_ticks:
        x, y = box.at(box.x[0], value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, box.width))
        parts.append(label(x - 6, y + 3.5, value, "end"))
    for value in x_ticks:
        x, y = box.at(value, box.y[0])
        parts.append(Markup('<path class="tick" d="M{:.1f} {:.1f}v4"/>').format(x, y))
        parts.append(label(x, y + 16, value, "middle"))
    return Markup("").join(parts)


def label(x: float, y: float, value: float, anchor: str) -> Markup:
    """A number on an axis."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, f"{value:,.10g}")


def _line(box: Box, points: Points, index: int, *, dots: bool) -> Markup:
    colour, dash = style(index)
    places = [box.at(x, y) for x, y in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    line = Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format(path, colour, dash)
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6" fill="{}"/>')
    return line + Markup("").join(dot.format(x, y, colour) for x, y in places if dots)


def svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    """A picture of its parts, as wide as where it stands; the title is read aloud in its place."""
    return Markup('<svg class="figure" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )


def mark(series: int, x: float, y: float, size: float = 4.2) -> Markup:
    """The mark of a row: circle, square, diamond, triangle, then the same hollow."""
    colour = COLOURS[series % len(COLOURS)]
    fill = colour if series % 8 < 4 else "#fff"
    if series % 4 == 0:
        return Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill="{}" stroke="{}"/>').format(
            x, y, size, fill, colour
        )
    path = (
        f"M{x - size * 0.9:.1f} {y - size * 0.9:.1f}h{size * 1.8:.1f}v{size * 1.8:.1f}h{-size * 1.8:.1f}z",
        f"M{x:.1f} {y - size * 1.3:.1f}l{size * 1.3:.1f} {size * 1.3:.1f}l{-size * 1.3:.1f} {size * 1.3:.1f}"
        f"l{-size * 1.3:.1f} {-size * 1.3:.1f}z",
        f"M{x:.1f} {y - size * 1.2:.1f}l{size * 1.2:.1f} {size * 2.1:.1f}h{-size * 2.4:.1f}z",
    )[series % 4 - 1]
    return Markup('<path class="dot" d="{}" fill="{}" stroke="{}"/>').format(path, fill, colour)


def track_key(series: int) -> Markup:
    """A row's line and mark, for a legend."""
    colour, dash = style(series)
    return Markup(
        '<svg class="key-line" viewBox="0 0 30 12" aria-hidden="true"><path class="line" d="M1 6H29" stroke="{}" '
        'stroke-dasharray="{}"/>{}</svg>'
    ).format(colour, dash, mark(series, 15, 6, 3.6))
