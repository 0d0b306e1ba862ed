"""Figures of counts and shares: bars, a histogram, and strips that stand in the line of a table."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from cleft.report.cells import percent
from cleft.report.figures import COLOURS, Box, label, svg, ticks

STACK = (("1", COLOURS[0]), ("0", "#b4bec8"), ("-1", COLOURS[1]), ("blank", "#eef1f4"))
"""Label and colour of the parts of a stack, from the left."""
_WIDTH = 320
_NAMES = 130
_BAR = 86
_LINE = 21
_LETTERS = 19
_ABOVE = 15
_LINE_LETTERS = 54


def bar_chart(title: str, counts: Sequence[tuple[str, int]]) -> Markup:
    """One lying bar per thing, with its count and share behind it, and a long name on a line above it.

    Args:
        title: Read aloud in place of the picture.
        counts: Thing and count, from the top.
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
                end + 6, y + 14, f"{count:,} · {percent(count / total)}"
            )
        )
        y += _LINE
    return svg(title, _WIDTH, y + 2, parts)


def histogram(title: str, counts: Sequence[tuple[str, int]], axis: str) -> Markup:
    """One standing bar per range of a quantity, side by side.

    Args:
        title: Read aloud in place of the picture.
        counts: Range, such as `40–49`, and count, from the left.
        axis: What the quantity is.
    """
    heights = ticks(0, max(1, *(count for _, count in counts)), most=4)
    heights = [height for height in heights if height == int(height)]
    box = Box(44, 8, _WIDTH - 50, 124, (0, len(counts)), (0, heights[-1]))
    parts: list[Markup] = []
    for height in heights:
        x, y = box.at(0, height)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, box.width))
        parts.append(label(x - 6, y + 3.5, height, "end"))
    for place, (name, count) in enumerate(counts):
        (x, y), (right, floor) = box.at(place, count), box.at(place + 1, 0)
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>'
            ).format(x + 1, y, right - x - 2, floor - y, COLOURS[0], f"{name}: {count:,}")
        )
        start = name.partition("–")[0]
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x + 1, floor + 15, start)
        )
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(_WIDTH - 6, 166, axis))
    return svg(title, _WIDTH, 170, parts)


def stack(parts: Sequence[int]) -> Markup:
    """Counts as parts of one bar, in the colours of `STACK`."""
    total = max(1, sum(parts))
    drawn: list[Markup] = []
    left = 0.0
    for count, (_, colour) in zip(parts, STACK, strict=True):
        width = 140 * count / total
        if count:
            drawn.append(
                Markup('<rect x="{:.2f}" width="{:.2f}" height="10" fill="{}"/>').format(left, max(width, 0.6), colour)
            )
        left += width
    return Markup(
        '<svg class="stack" viewBox="0 0 140 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(drawn))


def square(colour: str) -> Markup:
    """The mark of a part, for a legend."""
    return Markup(
        '<svg class="square" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" fill="{}"/></svg>'
    ).format(colour)


def strip(shares: Sequence[float | None], most: float) -> Markup:
    """Shares of several groups as marks on one line; groups differ by colour and by shape.

    Args:
        shares: One per group, in [0, 1]; None is not drawn.
        most: Where the line ends.
    """
    drawn = [Markup('<path class="rail" d="M5 6H135"/>')]
    drawn += [group_mark(place, 5 + 130 * share / most) for place, share in enumerate(shares) if share is not None]
    return Markup('<svg class="whisker" viewBox="0 0 140 12" aria-hidden="true">{}</svg>').format(
        Markup("").join(drawn)
    )


def group_mark(place: int, x: float) -> Markup:
    """The mark of the group at a place: circle, square, diamond, triangle, and the same hollow."""
    colour = COLOURS[place % len(COLOURS)]
    fill, edge = (colour, "#fff") if place < 4 else ("#fff", colour)
    if place % 4 == 0:
        return Markup('<circle cx="{:.1f}" cy="6" r="3.2" fill="{}" stroke="{}"/>').format(x, fill, edge)
    path = ("M{l:.1f} 3h6v6h-6z", "M{x:.1f} 1.8l4.2 4.2l-4.2 4.2l-4.2 -4.2z", "M{x:.1f} 2l4 7h-8z")[place % 4 - 1]
    return Markup('<path d="{}" fill="{}" stroke="{}"/>').format(path.format(l=x - 3, x=x), fill, edge)


def group_key(place: int) -> Markup:
    """The mark of a group by itself, for a legend."""
    return Markup('<svg class="square" viewBox="0 0 12 12" aria-hidden="true">{}</svg>').format(group_mark(place, 6))
