"""Charts of a study: accuracy against trainable parameters, context length, and share of the training patients.

A row keeps its mark, colour and dash in every chart. The paper's numbers are hollow, thin and labelled as the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.charts import BLACK, GREY, Axes, series_key, series_marker, series_style, svg, ticks
from cleft.report.html import format_parameters
from cleft.report.paper import WEIGHTS, quoted
from cleft.report.study_table import MetricSummary, StudyResults, axis_label, is_percent
from cleft.report.tables import BASELINES
from cleft.results import StudyLine

_LETTER = 5.6
"""Width of a letter of a figure, in its own units, by rule of thumb."""


class Bubble(NamedTuple):
    """A model: what it costs and what it reaches."""

    name: str
    moving: float
    """Weights that are trained."""
    frozen: float
    value: float
    """In percent."""
    reach: tuple[float, float] | None
    """From the lowest to the highest end of its intervals, in percent."""
    paper: bool
    """Whether the paper says so, and not we."""
    text: float = 0.0
    """Trainable parameters of the text tower, among `moving`."""
    number: int = 0
    """What stands beside it in place of its name, where there are many; 0 for the name."""


class Stop(NamedTuple):
    """A number at a place of an axis."""

    x: float
    value: float
    """In percent, or as it is."""
    reach: tuple[float, float] | None
    each: Sequence[float]
    """Of every seed."""


class Track(NamedTuple):
    """What one row reaches along an axis."""

    name: str
    series: int
    stops: Sequence[Stop]


def bubble_chart(title: str, bubbles: Sequence[Bubble], *, unit: str) -> Markup:
    """Numbers against trainable parameters on a logarithmic axis, which a bubble's diameter shows too.

    Colour shows how many of them are in the text tower, as in the paper's Figure 1.

    Args:
        title: Read aloud in place of the picture.
        bubbles: At least one, each with trainable parameters.
        unit: What the upright axis says.
    """
    ends = [end for bubble in bubbles for end in (bubble.value, *(bubble.reach or ()))]
    heights = ticks(min(ends), max(ends), most=6)
    stops = _log_ticks([bubble.moving for bubble in bubbles])
    ends_of_axis = math.log10(stops[0]), math.log10(stops[-1])
    box = Axes(46, 26, 490, 270, ends_of_axis, (heights[0], heights[-1]))
    parts = [_upright(box, heights, unit)]
    for stop in stops:
        x, y = box.to_svg(math.log10(stop), heights[0])
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, box.top, y))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                x, y + 16, format_parameters(stop).replace(".00", "")
            )
        )
    parts.append(_axis_name(box, "trainable parameters, logarithmic", 46))
    most = max(bubble.moving for bubble in bubbles)
    largest = _LARGEST if not any(bubble.number for bubble in bubbles) else _LARGEST_OF_MANY
    places = [(box.to_svg(math.log10(each.moving), each.value), radius(each, most, largest)) for each in bubbles]
    for bubble, (place, size) in sorted(zip(bubbles, places, strict=True), key=lambda pair: -pair[1][1]):
        parts.append(_bubble(bubble, place, size, box, text_colour(bubble.text, bubbles)))
    named = [index for index, bubble in enumerate(bubbles) if not bubble.number]
    parts += _labels([bubbles[index] for index in named], [places[index] for index in named], box)
    parts += _numbers(bubbles, places, box)
    return svg(title, 560, 350, parts)


_LARGEST, _LARGEST_OF_MANY = 26.0, 9.0


def radius(bubble: Bubble, most: float, largest: float = _LARGEST) -> float:
    """Returns the radius of a bubble: proportional to its trainable parameters, and never too small to be seen."""
    return max(4.0, largest * bubble.moving / most)


_LIGHT, _DARK = (158, 202, 225), (8, 48, 107)


def text_colour(text: float, bubbles: Sequence[Bubble]) -> str:
    """Returns the colour of a number of trainable text parameters: grey for none, darker blue for more."""
    if text < 1:
        return GREY
    logs = [math.log10(bubble.text) for bubble in bubbles if bubble.text >= 1]
    low, high = min(logs), max(logs)
    share = 1.0 if high == low else (math.log10(text) - low) / (high - low)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_LIGHT, _DARK, strict=True))


def text_key(bubbles: Sequence[Bubble]) -> list[tuple[Markup, str]]:
    """Returns the legend of the colours: each number of trainable text parameters, ascending; at most five of them."""
    counts = sorted({bubble.text for bubble in bubbles})
    shown = counts if len(counts) <= 5 else [counts[round(place * (len(counts) - 1) / 4)] for place in range(5)]
    picture = Markup(
        '<svg class="key-number" viewBox="0 0 20 14" aria-hidden="true"><circle cx="10" cy="7" r="5" fill="{}"/></svg>'
    )
    return [
        (picture.format(text_colour(count, bubbles)), f"{format_parameters(count)} trainable text parameters")
        for count in shown
    ]


def number_key(bubble: Bubble) -> Markup:
    """A bubble's number, for a legend."""
    return Markup('<svg class="key-number" viewBox="0 0 20 14" aria-hidden="true">{}</svg>').format(
        _number(bubble, 10, 11)
    )


def track_chart(
    title: str,
    tracks: Sequence[Track],
    *,
    unit: str,
    axis: str,
    floors: Sequence[tuple[str, float]] = (),
    fractions: bool = False,
) -> Markup:
    """Numbers along an axis, one line per row, each with its interval and a small ring for every seed.

    Args:
        title: Read aloud in place of the picture.
        tracks: At least one stop among them.
        unit: What the upright axis says.
        axis: What the lying axis says.
        floors: Name and height of rules without a model.
        fractions: Whether the lying axis is logarithmic and speaks percent.
    """
    stops = [stop for track in tracks for stop in track.stops]
    where = [math.log10(stop.x) if fractions else stop.x for stop in stops]
    ends = [end for stop in stops for end in (stop.value, *stop.each, *(stop.reach or ()))]
    heights = ticks(min([*ends, *(height for _, height in floors)]), max(ends), most=6)
    slack = (max(where) - min(where)) * 0.04 or 0.5
    box = Axes(46, 26, 490, 250, (min(where) - slack, max(where) + slack), (heights[0], heights[-1]))
    parts = [_upright(box, heights, unit)]
    for x in sorted(dict.fromkeys(stop.x for stop in stops)):
        at, y = box.to_svg(math.log10(x) if fractions else x, heights[0])
        text = f"{100 * x:g} %" if fractions else f"{x:g}"
        parts.append(Markup('<path class="tick" d="M{:.1f} {:.1f}v4"/>').format(at, y))
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(at, y + 16, text))
    parts.append(_axis_name(box, axis, 44))
    parts += [_floor(box, name, height) for name, height in floors]
    for place, track in enumerate(tracks):
        shift = (place - (len(tracks) - 1) / 2) * min(7.0, 36 / len(tracks))
        parts.append(_track(track, box, shift, fractions=fractions))
    return svg(title, 560, 326, parts)


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Moves labels apart that would stand on each other, keeping their order.

    Example:
        >>> spread_labels([10, 50, 12], 10)
        [6.0, 50.0, 16.0]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while (
            len(groups) > 1
            and _middle(groups[-1], heights) - _middle(groups[-2], heights)
            < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            last = groups.pop()
            groups[-1] += last
    placed = [0.0] * len(heights)
    for group in groups:
        for rank, index in enumerate(group):
            placed[index] = _middle(group, heights) + (rank - (len(group) - 1) / 2) * gap
    return placed


def _middle(group: Sequence[int], heights: Sequence[float]) -> float:
    return sum(heights[index] for index in group) / len(group)


def _upright(box: Axes, heights: Sequence[float], unit: str) -> Markup:
    parts: list[Markup] = []
    for height in heights:
        x, y = box.to_svg(box.x[0], height)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, box.width))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:,.10g}</text>').format(x - 6, y + 3.5, height)
        )
    parts.append(Markup('<text class="axis" x="{}" y="{}">{}</text>').format(4, box.top - 12, unit))
    return Markup("").join(parts)


def _axis_name(box: Axes, name: str, below: float) -> Markup:
    return Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
        box.left + box.width, box.top + box.height + below - 8, name
    )


def _log_ticks(counts: Sequence[float]) -> list[float]:
    """Powers of ten around some counts; where they lie within one or two, twice and five times these too.

    Example:
        >>> _log_ticks([331_057, 1_249_216]), _log_ticks([3e5, 4e7])
        ([200000.0, 500000.0, 1000000.0, 2000000.0], [100000.0, 1000000.0, 10000000.0, 100000000.0])
    """
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    steps = (1, 2, 5) if max(counts) < 30 * min(counts) else (1,)
    found = [float(step * 10**decade) for decade in range(low, max(high, low + 1) + 1) for step in steps]
    first = max(stop for stop in found if stop <= min(counts))
    last = min(stop for stop in found if stop >= max(counts) and stop > first)
    return [stop for stop in found if first <= stop <= last]


def _bubble(bubble: Bubble, place: tuple[float, float], size: float, box: Axes, colour: str) -> Markup:
    x, y = place
    look = 'fill="none" stroke-dasharray="3 2"' if bubble.paper else 'fill-opacity=".6"'
    whose = ", the paper’s" if bubble.paper else ""
    total, trainable = format_parameters(bubble.moving + bubble.frozen), format_parameters(bubble.moving)
    tooltip = (
        f"{bubble.name}{whose}: {bubble.value:.1f} with {trainable} trainable of {total} parameters, "
        f"{format_parameters(bubble.text)} of them in the text tower"
    )
    reach = Markup("")
    if bubble.reach is not None:
        (_, low), (_, high) = (box.to_svg(box.x[0], end) for end in bubble.reach)
        reach = Markup('<path class="whisk" stroke="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(colour, x, low, high)
    circle = Markup(
        '<circle class="bubble" cx="{:.1f}" cy="{:.1f}" r="{:.1f}" stroke="{}" {}><title>{}</title></circle>'
    )
    filled = Markup(look) if bubble.paper else Markup('fill="{}" {}').format(colour, Markup(look))
    return reach + circle.format(x, y, size, colour, filled, tooltip)


def _labels(bubbles: Sequence[Bubble], places: Sequence[tuple[tuple[float, float], float]], box: Axes) -> list[Markup]:
    """Names beside their bubbles, on the side with room, moved apart and led back with a hair line."""
    parts: list[Markup] = []
    sides = [
        x + size + 6 + len(bubble.name) * _LETTER > box.left + box.width
        for bubble, ((x, _), size) in zip(bubbles, places, strict=True)
    ]
    for left in (False, True):
        members = [index for index, side in enumerate(sides) if side is left]
        heights = spread_labels([places[index][0][1] for index in members], 13)
        for index, height in zip(members, heights, strict=True):
            (x, y), size = places[index]
            away = -1 if left else 1
            start, end = x + away * size, x + away * (size + 5)
            parts.append(
                Markup('<path class="lead" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(start, y, end, height)
                + Markup('<text class="name{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                    " paper" * bubbles[index].paper,
                    end + away * 2,
                    height + 3.5,
                    "end" if left else "start",
                    bubbles[index].name,
                )
            )
    return parts


def _numbers(bubbles: Sequence[Bubble], places: Sequence[tuple[tuple[float, float], float]], box: Axes) -> list[Markup]:
    """Numbers close to their bubbles, each where the fewest bubbles and numbers stand already."""
    parts: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for bubble, ((x, y), size) in zip(bubbles, places, strict=True):
        if not bubble.number:
            continue
        spots = [
            (x + (size + reach) * math.cos(turn * math.pi / 4), y - (size + reach) * math.sin(turn * math.pi / 4))
            for reach in (7 + 2 * len(str(bubble.number)), 17, 27, 37)
            for turn in (0, 4, 1, 3, 7, 5, 2, 6)
        ]
        spot = min(spots, key=lambda spot: _crowd(spot, taken, places, box))  # the nearest of equals
        taken.append(spot)
        if math.dist(spot, (x, y)) > size + 12:
            share = size / math.dist(spot, (x, y))
            start = x + share * (spot[0] - x), y + share * (spot[1] - y)
            parts.append(Markup('<path class="lead" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(*start, *spot))
        parts.append(_number(bubble, spot[0], spot[1] + 3.5))
    return parts


def _crowd(
    spot: tuple[float, float],
    taken: Sequence[tuple[float, float]],
    places: Sequence[tuple[tuple[float, float], float]],
    box: Axes,
) -> int:
    """How much stands where a number would: numbers weigh more than bubbles."""
    x, y = spot
    outside = not (box.left + 6 <= x <= box.left + box.width - 6 and box.top + 6 <= y <= box.top + box.height - 6)
    numbers = sum(abs(x - other) < 14 and abs(y - height) < 11 for other, height in taken)
    return 100 * outside + 4 * numbers + sum(math.dist(spot, place) < size + 6 for place, size in places)


def _number(bubble: Bubble, x: float, y: float) -> Markup:
    return Markup('<text class="number{}" x="{:.1f}" y="{:.1f}" text-anchor="middle" fill="{}">{}</text>').format(
        " paper" * bubble.paper, x, y, BLACK, bubble.number
    )


def _floor(box: Axes, name: str, height: float) -> Markup:
    x, y = box.to_svg(box.x[0], height)
    line = Markup('<path class="chance" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, box.width)
    return line + Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
        x + box.width, y - 4, name
    )


def _track(track: Track, box: Axes, shift: float, *, fractions: bool) -> Markup:
    colour, dash = series_style(track.series)
    parts: list[Markup] = []
    path: list[str] = []
    for stop in track.stops:
        x, y = box.to_svg(math.log10(stop.x) if fractions else stop.x, stop.value)
        path.append(f"{x + shift:.1f} {y:.1f}")
        if stop.reach is not None:
            (_, low), (_, high) = (box.to_svg(box.x[0], end) for end in stop.reach)
            parts.append(
                Markup('<path class="whisk" stroke="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                    colour, x + shift, low, high
                )
            )
        for value in stop.each if len(stop.each) > 1 else ():
            parts.append(
                Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="1.8" stroke="{}"/>').format(
                    x + shift, box.to_svg(box.x[0], value)[1], colour
                )
            )
        parts.append(series_marker(track.series, x + shift, y))
    line = Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format("L".join(path), colour, dash)
    return Markup('<g role="presentation">{}<title>{}</title></g>').format(line + Markup("").join(parts), track.name)


class Figure(NamedTuple):
    """A figure of the whole study."""

    title: str
    figure: Markup
    legend: Sequence[tuple[Markup, str]]
    caption: str


def study_figures(grid: StudyResults) -> list[Figure]:
    """Whatever the study holds enough numbers for."""
    figures = [_weights_figure(grid)]
    figures += [figure for column in grid.study.columns for figure in [_length_figure(grid, column)]]
    figures += _fraction_figures(grid)
    return [figure for figure in figures if figure is not None]


def _weights_figure(grid: StudyResults) -> Figure | None:
    """Accuracy against trainable parameters (the paper's Figure 1), from the first heading with zero-shot accuracy."""
    for column in grid.study.columns:
        if not column.key.endswith("zero-shot") or "accuracy" not in column.metrics:
            continue
        bubbles: list[Bubble] = []
        for row in grid.study.rows:
            number, moving = grid.summary(row, column, "accuracy"), row.facts.get("moving", 0.0)
            if number.value is not None and moving >= 1:
                reach = (
                    None
                    if number.interval_range is None
                    else (100 * number.interval_range[0], 100 * number.interval_range[1])
                )
                frozen, text = row.facts.get("frozen", 0.0), row.facts.get("moving_text", 0.0)
                bubbles.append(Bubble(row.label, moving, frozen, 100 * number.value, reach, False, text))
        if not bubbles or (len(bubbles) > 1 and len({bubble.moving for bubble in bubbles}) == 1):
            continue  # rows of one size, such as lengths of the context, tell nothing here
        for row in grid.study.rows if grid.study.scale == "paper" else ():  # small towers lie decades away
            paper = quoted("table1", row.key, column.key, "accuracy")
            if paper is not None and row.key in WEIGHTS:
                moving, frozen, text = WEIGHTS[row.key]
                name = f"{row.label}, the paper’s"
                bubbles.append(Bubble(name, moving, frozen, 100 * paper.value, None, True, text))
        title = f"{column.label}: accuracy against trainable parameters"
        caption = (
            "Diameter: trainable parameters of the model; colour: those of its text tower, as in the paper’s Figure 1. "
            "The upright line reaches from the lowest to the highest end of the seeds’ 95 % intervals."
        )
        if any(bubble.paper for bubble in bubbles):
            caption += (
                " Dashed and hollow: the accuracy that the paper prints, at numbers of parameters worked out from its "
                "configurations, heads of CLIP not counted."
            )
        if len(bubbles) > _NAMED:
            bubbles = _numbered(bubbles)
        legend = [(number_key(bubble), bubble.name) for bubble in bubbles if bubble.number] + text_key(bubbles)
        return Figure(title, bubble_chart(title, bubbles, unit="accuracy, %"), legend, caption)
    return None


_NAMED = 7
"""Most bubbles that stand beside their names; more have numbers and a key."""


def _numbered(bubbles: Sequence[Bubble]) -> list[Bubble]:
    return [bubble._replace(number=place) for place, bubble in enumerate(bubbles, 1)]


def _length_figure(grid: StudyResults, column: StudyLine) -> Figure | None:
    """Numbers against the length of the learned context (the paper's Figure 3)."""
    rows = sorted((row for row in grid.study.rows if "length" in row.facts), key=lambda row: row.facts["length"])
    metric = next(iter(column.metrics), "")
    stops = [
        _stop(row.facts["length"], metric, number)
        for row in rows
        if (number := grid.summary(row, column, metric)).value is not None
    ]
    if len({stop.x for stop in stops}) < 2:
        return None  # one length, as in Table 1, tells nothing of lengths
    title = f"{column.label}: {axis_label(metric)} against context length"
    chart = track_chart(
        title,
        [Track("mean over seeds", 0, stops)],
        unit=_unit(metric),
        axis="learned context vectors",
        floors=_floors(grid, column, metric),
    )
    return Figure(title, chart, [], _REACH)


_REACH = (
    "Mean over seeds; the upright line reaches from the lowest to the highest end of the seeds’ 95 % intervals, and "
    "each small ring is a seed. Dotted: rules without a model."
)


def _fraction_figures(grid: StudyResults) -> list[Figure]:
    """Numbers against the share of training patients, for each dataset, task and metric with two shares or more."""
    series: dict[tuple[str, str], dict[str, list[tuple[float, StudyLine]]]] = {}
    for column in grid.study.columns:
        shares = {seed.evaluation.fraction for seed in grid.seeds(column) if seed.evaluation.protocol}
        if len(shares) == 1:
            seed = next(seed for seed in grid.seeds(column) if seed.evaluation.protocol)
            place = series.setdefault((seed.evaluation.dataset, seed.evaluation.task), {})
            for metric in column.metrics:
                place.setdefault(metric, []).append((next(iter(shares)), column))
    return [
        _fraction_figure(grid, metric, sorted(columns, key=lambda pair: pair[0]))
        for metrics in series.values()
        for metric, columns in metrics.items()
        if len({share for share, _ in columns}) > 1
    ]


def _without_share(label: str) -> str:
    """A heading without its last part.

    Example:
        >>> _without_share("RSNA, linear probe, 10 %")
        'RSNA, linear probe'
    """
    return label.rpartition(", ")[0] or label


def _fraction_figure(grid: StudyResults, metric: str, columns: Sequence[tuple[float, StudyLine]]) -> Figure:
    tracks: list[Track] = []
    for series, row in enumerate(grid.study.rows):
        stops = [
            _stop(share, metric, number)
            for share, column in columns
            if (number := grid.summary(row, column, metric)).value is not None
        ]
        if stops:
            tracks.append(Track(row.label, series, stops))
    title = f"{_without_share(columns[0][1].label)}: {axis_label(metric)} against the share of the training patients"
    chart = track_chart(
        title,
        tracks,
        unit=_unit(metric),
        axis="share of the training patients, logarithmic",
        floors=_floors(grid, columns[0][1], metric),
        fractions=True,
    )
    return Figure(title, chart, [(series_key(track.series), track.name) for track in tracks], _REACH)


def _stop(x: float, metric: str, number: MetricSummary) -> Stop:
    scale = 100 if is_percent(metric) else 1
    reach = (
        None if number.interval_range is None else (scale * number.interval_range[0], scale * number.interval_range[1])
    )
    each = [scale * result.value for _, result in number.results if result.value is not None]
    return Stop(x, scale * (number.value or 0.0), reach, each)


def _unit(metric: str) -> str:
    return f"{axis_label(metric)}, %" if is_percent(metric) else axis_label(metric)


def _floors(grid: StudyResults, column: StudyLine, metric: str) -> list[tuple[str, float]]:
    scale = 100 if is_percent(metric) else 1
    found = [(name, grid.baseline(rule, column, metric)) for rule, name in BASELINES.items()]
    told = [(name, scale * number.value) for name, number in found if number is not None and number.value is not None]
    return [(name, value) for place, (name, value) in enumerate(told) if value not in [v for _, v in told[:place]]]
