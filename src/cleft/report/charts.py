"""SVG charts, written by hand: a few kilobytes each, in the page's own type, sharp in print.

Series differ by colour and by dash, so that they can be distinguished in a grey-scale print. The colours are those of
Okabe and Ito, which readers with any colour vision can distinguish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.html import format_percent

Points = Sequence[tuple[float, float]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#7a6a00", "#333333")
GREY, BLACK = "#56606b", "#171a1f"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")


class Axes(NamedTuple):
    """Plot area of a chart, in SVG units, and the data range of both axes."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def to_svg(self, x: float, y: float) -> tuple[float, float]:
        """Convert data coordinates to SVG coordinates."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height


def series_style(index: int) -> tuple[str, str]:
    """Return colour and dash pattern of the i-th series; pairs repeat only after all have been used."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def legend_line(index: int) -> Markup:
    """Return the legend line of a series."""
    colour, dash = series_style(index)
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true"><path d="M1 4H29" stroke="{}" '
        'stroke-dasharray="{}"/></svg>'
    ).format(colour, dash)


def line_chart(
    title: str, series: Mapping[str, Points], *, mark: tuple[float, float] | None = None, large: bool = True
) -> Markup:
    """Draw quantities over optimiser steps.

    Args:
        title: Text alternative for screen readers.
        series: Name to points (step, value).
        mark: A point to circle, such as the best checkpoint.
        large: Half a page wide rather than a quarter.
    """
    points = [point for line in series.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    start = 0.0 if 0 <= first < last / 4 else first
    x_ticks = [tick for tick in ticks(start, last, most=6 if large else 4) if start <= tick <= last]
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), most=5 if large else 3)
    width, height = (480, 240) if large else (240, 150)
    span = (start, last) if last > start else (start - 0.5, start + 0.5)
    axes = Axes(46, 10, width - 70, height - 50, span, (y_ticks[0], y_ticks[-1]))
    parts = [gridlines(axes, x_ticks, y_ticks)]
    parts += [_line(axes, line, index, dots=len(line) <= 25) for index, line in enumerate(series.values())]
    if mark is not None:
        x, y = axes.to_svg(*mark)
        parts.append(Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="6"/>').format(x, y))
    foot = Markup('<text class="axis" x="{}" y="{}" text-anchor="end">optimiser steps</text>')
    parts.append(foot.format(axes.left + axes.width, height - 6))
    return svg(title, width, height, parts)


def roc_chart(title: str, curves: Sequence[tuple[int, Points]]) -> Markup:
    """Draw the ROC curves of one class, one per model, and the chance diagonal.

    Args:
        title: Text alternative for screen readers.
        curves: Series index and points (false positive rate, true positive rate).
    """
    axes = Axes(30, 8, 160, 160, (0, 1), (0, 1))
    parts = [gridlines(axes, [0, 0.5, 1], [0, 0.5, 1])]
    (x0, y0), (x1, y1) = axes.to_svg(0, 0), axes.to_svg(1, 1)
    parts.append(
        Markup('<path class="chance" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x0, y0, x1, y1),
    )
    parts += [_line(axes, points, index, dots=False) for index, points in curves]
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
    """Draw a value with its interval: one row of a forest plot.

    Args:
        value: In [0, 1].
        interval: Lower and upper limit, or None.
        span: Range of the axis, equal for all rows of a column.
        kind: `model` filled circle, `mean` filled diamond, `baseline` hollow square, `paper` hollow diamond.
        colour: Of marker and interval.
        level: Position of the thin reference line, such as chance level.
    """
    axes = _whisker_axes(span)
    parts: list[Markup] = [Markup('<path class="rail" d="M{} 6H{}"/>').format(axes.left, axes.left + axes.width)]
    if span[0] <= level <= span[1]:
        parts.append(Markup('<path class="level" d="M{:.1f} 1V11"/>').format(axes.to_svg(level, 0)[0]))
    if interval is not None:
        low, high = (axes.to_svg(end, 0)[0] for end in interval)
        parts.append(Markup('<path class="reach" stroke="{}" d="M{:.1f} 6H{:.1f}"/>').format(colour, low, high))
    parts.append(marker(kind, axes.to_svg(value, 0)[0], colour))
    return Markup('<svg class="whisker" viewBox="0 0 140 12" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def marker(kind: str, x: float, colour: str) -> Markup:
    """Return the marker of a kind of row."""
    if kind == "baseline":
        return Markup('<rect x="{:.1f}" y="3.2" width="5.6" height="5.6" fill="#fff" stroke="{}"/>').format(
            x - 2.8, colour
        )
    if kind in ("paper", "mean"):
        fill = colour if kind == "mean" else "#fff"
        return Markup('<path d="M{:.1f} 2l4 4l-4 4l-4 -4z" fill="{}" stroke="{}"/>').format(x, fill, colour)
    return Markup('<circle cx="{:.1f}" cy="6" r="3" fill="{}"/>').format(x, colour)


def legend_marker(kind: str, colour: str) -> Markup:
    """Return the legend entry of a kind of row."""
    return Markup('<svg class="sign" viewBox="0 0 30 12" aria-hidden="true">{}{}</svg>').format(
        Markup('<path class="reach" stroke="{}" d="M2 6H28"/>').format(colour) if kind in ("model", "mean") else "",
        Markup('<path class="level" d="M15 1V11"/>') if kind == "level" else marker(kind, 15, colour),
    )


def _whisker_axes(span: tuple[float, float]) -> Axes:
    return Axes(5, 0, 130, 12, span, (0, 1))


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return round tick values that enclose a range.

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


def gridlines(axes: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
    """Draw horizontal grid lines and the tick labels of both axes."""
    parts: list[Markup] = []
    for value in y_ticks:
        x, y = axes.to_svg(axes.x[0], value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, axes.width))
        parts.append(tick_label(x - 6, y + 3.5, value, "end"))
    for value in x_ticks:
        x, y = axes.to_svg(value, axes.y[0])
        parts.append(Markup('<path class="tick" d="M{:.1f} {:.1f}v4"/>').format(x, y))
        parts.append(tick_label(x, y + 16, value, "middle"))
    return Markup("").join(parts)


def tick_label(x: float, y: float, value: float, anchor: str) -> Markup:
    """Draw the number at a tick."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, f"{value:,.10g}")


def _line(axes: Axes, points: Points, index: int, *, dots: bool) -> Markup:
    colour, dash = series_style(index)
    places = [axes.to_svg(x, y) for x, y in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    line = Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format(path, colour, dash)
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6" fill="{}"/>')
    return line + Markup("").join(dot.format(x, y, colour) for x, y in places if dots)


def svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    """Return an SVG element that scales to its container; screen readers read its title."""
    return Markup('<svg class="figure" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )


def series_marker(series: int, x: float, y: float, size: float = 4.2) -> Markup:
    """Draw the marker of a series: circle, square, diamond, triangle, then the same hollow."""
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


def series_key(series: int) -> Markup:
    """Return line and marker of a series, for a legend."""
    colour, dash = series_style(series)
    return Markup(
        '<svg class="key-line" viewBox="0 0 30 12" aria-hidden="true"><path class="line" d="M1 6H29" stroke="{}" '
        'stroke-dasharray="{}"/>{}</svg>'
    ).format(colour, dash, series_marker(series, 15, 6, 3.6))


LABEL_COLOURS = (("1", COLOURS[0]), ("0", "#b4bec8"), ("-1", COLOURS[1]), ("blank", "#eef1f4"))
"""Label value and colour of the parts of a stacked bar, from the left."""
_WIDTH = 320
_NAMES = 130
_BAR = 86
_LINE = 21
_LETTERS = 19
_ABOVE = 15
_LINE_LETTERS = 54


def bar_chart(title: str, counts: Sequence[tuple[str, int]]) -> Markup:
    """Draw horizontal bars with counts and percentages; a long name has a separate line above its bar.

    Args:
        title: Text alternative for screen readers.
        counts: Name and count, from the top.
    """
    total, most = max(1, sum(count for _, count in counts)), max(1, *(count for _, count in counts))
    parts: list[Markup] = []
    y = 0
    for name, count in counts:
        above = len(name) > _LETTERS
        text = name if len(name) <= _LINE_LETTERS else f"{name[: _LINE_LETTERS - 1]}…"
        end = _NAMES + count / most * _BAR
        parts.append(Markup('<text x="0" y="{}">{}<title>{}</title></text>').format(y + 14, text, name))
        y += _ABOVE * above
        parts.append(
            Markup('<rect x="{}" y="{}" width="{:.1f}" height="13" fill="{}"/>').format(
                _NAMES, y + 3, max(1.0, end - _NAMES), COLOURS[0]
            )
            + Markup('<text class="count" x="{:.1f}" y="{}">{}</text>').format(
                end + 6, y + 14, f"{count:,} · {format_percent(count / total)}"
            )
        )
        y += _LINE
    return svg(title, _WIDTH, y + 2, parts)


def histogram(title: str, counts: Sequence[tuple[str, int]], axis: str) -> Markup:
    """Draw a histogram.

    Args:
        title: Text alternative for screen readers.
        counts: Bin, such as `40–49`, and count, from the left.
        axis: Name of the horizontal axis.
    """
    heights = ticks(0, max(1, *(count for _, count in counts)), most=4)
    heights = [height for height in heights if height == int(height)]
    axes = Axes(44, 8, _WIDTH - 50, 124, (0, len(counts)), (0, heights[-1]))
    parts: list[Markup] = []
    for height in heights:
        x, y = axes.to_svg(0, height)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, axes.width))
        parts.append(tick_label(x - 6, y + 3.5, height, "end"))
    for index, (name, count) in enumerate(counts):
        (x, y), (right, base) = axes.to_svg(index, count), axes.to_svg(index + 1, 0)
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>'
            ).format(x + 1, y, right - x - 2, base - y, COLOURS[0], f"{name}: {count:,}")
        )
        start = name.partition("–")[0]
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x + 1, base + 15, start)
        )
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(_WIDTH - 6, 166, axis))
    return svg(title, _WIDTH, 170, parts)


def stacked_bar(parts: Sequence[int]) -> Markup:
    """Draw counts as parts of one bar, in `LABEL_COLOURS`."""
    total = max(1, sum(parts))
    segments: list[Markup] = []
    left = 0.0
    for count, (_, colour) in zip(parts, LABEL_COLOURS, strict=True):
        width = 140 * count / total
        if count:
            segments.append(
                Markup('<rect x="{:.2f}" width="{:.2f}" height="10" fill="{}"/>').format(left, max(width, 0.6), colour)
            )
        left += width
    return Markup(
        '<svg class="stack" viewBox="0 0 140 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(segments))


def legend_square(colour: str) -> Markup:
    """Return a coloured square, for a legend."""
    return Markup(
        '<svg class="square" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" fill="{}"/></svg>'
    ).format(colour)


def dot_strip(shares: Sequence[float | None], most: float) -> Markup:
    """Draw the shares of several groups as markers on one axis.

    Args:
        shares: One per group, in [0, 1]; None is not drawn.
        most: Upper end of the axis.
    """
    parts = [Markup('<path class="rail" d="M5 6H135"/>')]
    parts += [group_marker(index, 5 + 130 * share / most) for index, share in enumerate(shares) if share is not None]
    return Markup('<svg class="whisker" viewBox="0 0 140 12" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def group_marker(index: int, x: float) -> Markup:
    """Draw the marker of the i-th group: circle, square, diamond, triangle, then the same hollow."""
    colour = COLOURS[index % len(COLOURS)]
    fill, edge = (colour, "#fff") if index < 4 else ("#fff", colour)
    if index % 4 == 0:
        return Markup('<circle cx="{:.1f}" cy="6" r="3.2" fill="{}" stroke="{}"/>').format(x, fill, edge)
    path = ("M{l:.1f} 3h6v6h-6z", "M{x:.1f} 1.8l4.2 4.2l-4.2 4.2l-4.2 -4.2z", "M{x:.1f} 2l4 7h-8z")[index % 4 - 1]
    return Markup('<path d="{}" fill="{}" stroke="{}"/>').format(path.format(l=x - 3, x=x), fill, edge)


def group_legend(index: int) -> Markup:
    """Return the marker of a group, for a legend."""
    return Markup('<svg class="square" viewBox="0 0 12 12" aria-hidden="true">{}</svg>').format(group_marker(index, 6))
