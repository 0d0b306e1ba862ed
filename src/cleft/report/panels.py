"""Small figures of one result: a reliability curve, a map of the joint space, the norms of a learned context."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from cleft.report.cells import FEWEST_PATIENTS
from cleft.report.figures import COLOURS, SOFT, Box, grid, mark, svg, ticks
from cleft.types import Calibration, ContextVector, ReliabilityBin, SpaceMap


def reliability_chart(title: str, calibration: Calibration, series: int, *, synthetic: bool) -> Markup:
    """How often answers of a confidence came true, before (filled) and after the temperature (hollow).

    Args:
        title: Read aloud in place of the picture.
        calibration: Its bins; those of a few patients are not drawn.
        series: Whose colour and mark it has.
        synthetic: Whether the patients are phantoms.
    """
    box = Box(30, 8, 160, 160, (0, 1), (0, 1))
    (x0, y0), (x1, y1) = box.at(0, 0), box.at(1, 1)
    parts = [
        grid(box, [0, 0.5, 1], [0, 0.5, 1]),
        Markup('<path class="chance" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x0, y0, x1, y1),
    ]
    after = [_place(box, each) for each in _told(calibration.bins_after, synthetic)]
    if after:
        parts.append(_path(after, SOFT, "2 3"))
        ring = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.8" fill="#fff" stroke="{}"/>')
        parts += [ring.format(x, y, SOFT) for x, y in after]
    before = [_place(box, each) for each in _told(calibration.bins, synthetic)]
    if before:
        parts.append(_path(before, COLOURS[series % len(COLOURS)], ""))
        parts += [mark(series, x, y, 3) for x, y in before]
    parts.append(Markup('<text class="axis" x="190" y="197" text-anchor="end">probability that was given</text>'))
    return svg(title, 200, 202, parts)


def _told(bins: Sequence[ReliabilityBin], synthetic: bool) -> list[ReliabilityBin]:
    return [each for each in bins if synthetic or each.patients >= FEWEST_PATIENTS]


def _place(box: Box, each: ReliabilityBin) -> tuple[float, float]:
    return box.at(each.predicted, each.observed)


def _path(places: Sequence[tuple[float, float]], colour: str, dash: str) -> Markup:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format(path, colour, dash)


def space_chart(title: str, space: SpaceMap, classes: Sequence[str], hidden: Sequence[str] = ()) -> Markup:
    """Images as small marks of their classes, class prompts as ringed crosses with their names.

    Args:
        title: Read aloud in place of the picture.
        space: Coordinates of both.
        classes: What the indices mean.
        hidden: Classes of too few images, which are not drawn.
    """
    shown = [(index, x, y) for index, x, y in space.images if classes[index] not in hidden]
    places = [(x, y) for _, x, y in shown] + list(space.prompts)
    size = max(*(abs(coordinate) for place in places for coordinate in place), 1e-6) * 1.06
    box = Box(6, 6, 348, 348, (-size, size), (-size, size))
    (middle_x, middle_y) = box.at(0, 0)
    parts = [
        Markup('<rect class="frame" x="6" y="6" width="348" height="348"/>'),
        Markup('<path class="grid" d="M6 {:.1f}H354M{:.1f} 6V354"/>').format(middle_y, middle_x),
    ]
    dots = [mark(index, *box.at(x, y), size=2.4) for index, x, y in shown]
    parts.append(Markup('<g class="cloud">{}</g>').format(Markup("").join(dots)))
    spots = [box.at(x, y) for x, y in space.prompts]
    for index, (x, y) in enumerate(spots):
        parts.append(Markup('<circle class="prompt" cx="{:.1f}" cy="{:.1f}" r="6.5"/>').format(x, y))
        parts.append(mark(index, x, y, 3.4))
    name = Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    parts += [name.format(*place, text) for place, text in zip(place_names(spots, classes), classes, strict=True)]
    return svg(title, 360, 360, parts)


def place_names(spots: Sequence[tuple[float, float]], names: Sequence[str]) -> list[tuple[float, float, str]]:
    """Where names stand beside rings: right, left, above or below, wherever they cover least.

    Returns:
        Place and anchor of each text, in a picture of 360 by 360.
    """
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    placed: list[tuple[float, float, str]] = []
    for (x, y), name in zip(spots, names, strict=True):
        width = 6.2 * len(name)
        options = [
            (x + 10, y + 4, "start", (x + 10, y - 6, x + 10 + width, y + 6)),
            (x - 10, y + 4, "end", (x - 10 - width, y - 6, x - 10, y + 6)),
            (x, y - 10, "middle", (x - width / 2, y - 20, x + width / 2, y - 8)),
            (x, y + 18, "middle", (x - width / 2, y + 8, x + width / 2, y + 20)),
        ]
        best = min(options, key=lambda option: sum(_covered(option[3], other) for other in [*taken, *_OUTSIDE]))
        taken.append(best[3])
        placed.append(best[:3])
    return placed


_Corners = tuple[float, float, float, float]
_OUTSIDE: tuple[_Corners, ...] = (
    (-999, -999, 4, 999),
    (356, -999, 999, 999),
    (-999, -999, 999, 4),
    (-999, 356, 999, 999),
)
"""What lies around the picture."""


def _covered(one: _Corners, other: _Corners) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def norms_chart(title: str, context: Sequence[ContextVector], token_norm: float | None) -> Markup:
    """The length of each learned vector as a stem, its way from where it started as a ring, a word's length as a line.

    Args:
        title: Read aloud in place of the picture.
        context: At least one vector, in the order in which they are read.
        token_norm: Mean length of the language model's token embeddings.
    """
    seen = [vector.norm for vector in context] + [vector.moved for vector in context if vector.moved is not None]
    heights = ticks(0, max([*seen, token_norm or 0.0]), most=5)
    box = Box(46, 22, 490, 170, (0.0, len(context) + 1.0), (heights[0], heights[-1]))
    places = [vector.place for vector in context]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(places)) if len(places) <= 12 * step)
    shown = [place for place in places if place == 1 or place % step == 0]
    parts = [grid(box, shown, heights)]
    for vector in context:
        (x, y), (_, floor) = box.at(vector.place, vector.norm), box.at(vector.place, heights[0])
        parts.append(
            Markup(
                '<g role="presentation"><path class="stem" d="M{x:.1f} {floor:.1f}V{y:.1f}" stroke="{colour}"/>'
                '<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/><title>{title}</title></g>'
            ).format(x=x, y=y, floor=floor, colour=COLOURS[0], title=f"vector {vector.place}: norm {vector.norm:.3g}")
        )
        if vector.moved is not None:
            _, moved = box.at(vector.place, vector.moved)
            parts.append(
                Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3" fill="#fff" stroke="{}"/>').format(
                    x, moved, COLOURS[1]
                )
            )
    if token_norm is not None:
        x, y = box.at(0, token_norm)
        parts.append(Markup('<path class="chance" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, box.width))
    parts.append(Markup('<text class="axis" x="4" y="12">norm</text>'))
    parts.append(Markup('<text class="axis" x="536" y="226" text-anchor="end">place in the context</text>'))
    return svg(title, 560, 232, parts)
