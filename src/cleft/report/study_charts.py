"""Charts of a study: accuracy against trainable parameters, context length, and share of the training patients.

A row keeps its mark, colour and dash in every chart. The paper's numbers are hollow, thin and labelled as the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.charts import BLACK, GREY, Axes, series_key, series_marker, series_style, svg, ticks
from cleft.report.html import axis_label, format_parameters, is_percent
from cleft.report.paper import PARAMETERS, quoted
from cleft.report.study_table import MetricSummary, StudyResults
from cleft.report.tables import BASELINES
from cleft.results import StudyLine

_LETTER = 5.6
"""Approximate width of a letter, in SVG units."""


class Bubble(NamedTuple):
    """A model: its parameters and its accuracy."""

    name: str
    trainable: float
    """Trainable parameters."""
    frozen: float
    value: float
    """In percent."""
    interval_range: tuple[float, float] | None
    """Lowest and highest limit of its intervals over seeds, in percent."""
    paper: bool
    """Whether the value is the paper's."""
    text: float = 0.0
    """Trainable parameters of the text encoder, included in `trainable`."""
    number: int = 0
    """Number that replaces its name where there are many bubbles; 0 for the name."""


class CurvePoint(NamedTuple):
    """A value at a position of the horizontal axis."""

    x: float
    value: float
    """In percent, or in the unit of the metric."""
    interval_range: tuple[float, float] | None
    seeds: Sequence[float]
    """Value of every seed."""


class Curve(NamedTuple):
    """The values of one row."""

    name: str
    series: int
    points: Sequence[CurvePoint]


def bubble_chart(title: str, bubbles: Sequence[Bubble], *, unit: str) -> Markup:
    """Draw values against trainable parameters (logarithmic), which the diameter shows too.

    The colour shows the trainable parameters of the text encoder, as in the paper's Figure 1.

    Args:
        title: Text alternative for screen readers.
        bubbles: At least one, each with trainable parameters.
        unit: Name of the vertical axis.
    """
    ends = [end for bubble in bubbles for end in (bubble.value, *(bubble.interval_range or ()))]
    heights = ticks(min(ends), max(ends), most=6)
    stops = _log_ticks([bubble.trainable for bubble in bubbles])
    ends_of_axis = math.log10(stops[0]), math.log10(stops[-1])
    axes = Axes(46, 26, 490, 270, ends_of_axis, (heights[0], heights[-1]))
    parts = [_upright(axes, heights, unit)]
    for stop in stops:
        x, y = axes.to_svg(math.log10(stop), heights[0])
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, axes.top, y))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                x, y + 16, format_parameters(stop).replace(".00", "")
            )
        )
    parts.append(_axis_name(axes, "trainable parameters (logarithmic)", 46))
    most = max(bubble.trainable for bubble in bubbles)
    largest = _LARGEST if not any(bubble.number for bubble in bubbles) else _LARGEST_OF_MANY
    places = [(axes.to_svg(math.log10(each.trainable), each.value), radius(each, most, largest)) for each in bubbles]
    for bubble, (place, size) in sorted(zip(bubbles, places, strict=True), key=lambda pair: -pair[1][1]):
        parts.append(_bubble(bubble, place, size, axes, text_colour(bubble.text, bubbles)))
    named = [index for index, bubble in enumerate(bubbles) if not bubble.number]
    parts += _labels([bubbles[index] for index in named], [places[index] for index in named], axes)
    parts += _numbers(bubbles, places, axes)
    return svg(title, 560, 350, parts)


_LARGEST, _LARGEST_OF_MANY = 26.0, 9.0


def radius(bubble: Bubble, most: float, largest: float = _LARGEST) -> float:
    """Return the radius of a bubble, proportional to its trainable parameters, with a visible minimum."""
    return max(4.0, largest * bubble.trainable / most)


_LIGHT, _DARK = (158, 202, 225), (8, 48, 107)


def text_colour(text: float, bubbles: Sequence[Bubble]) -> str:
    """Return the colour for a number of trainable text parameters: grey for none, darker blue for more."""
    if text < 1:
        return GREY
    logs = [math.log10(bubble.text) for bubble in bubbles if bubble.text >= 1]
    low, high = min(logs), max(logs)
    share = 1.0 if high == low else (math.log10(text) - low) / (high - low)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_LIGHT, _DARK, strict=True))


def text_key(bubbles: Sequence[Bubble]) -> list[tuple[Markup, str]]:
    """Return the colour legend: at most five numbers of trainable text parameters, ascending."""
    counts = sorted({bubble.text for bubble in bubbles})
    shown = counts if len(counts) <= 5 else [counts[round(place * (len(counts) - 1) / 4)] for place in range(5)]
    swatch = Markup(
        '<svg class="key-number" viewBox="0 0 20 14" aria-hidden="true"><circle cx="10" cy="7" r="5" fill="{}"/></svg>'
    )
    return [
        (swatch.format(text_colour(count, bubbles)), f"{format_parameters(count)} trainable text parameters")
        for count in shown
    ]


def number_key(bubble: Bubble) -> Markup:
    """Return the number of a bubble, for a legend."""
    return Markup('<svg class="key-number" viewBox="0 0 20 14" aria-hidden="true">{}</svg>').format(
        _number(bubble, 10, 11)
    )


def curve_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str,
    axis: str,
    baselines: Sequence[tuple[str, float]] = (),
    fractions: bool = False,
) -> Markup:
    """Draw one curve per row, with intervals and a small circle for every seed.

    Args:
        title: Text alternative for screen readers.
        curves: At least one point among them.
        unit: Name of the vertical axis.
        axis: Name of the horizontal axis.
        baselines: Name and value of baselines without a model.
        fractions: Whether the horizontal axis is logarithmic, in percent.
    """
    stops = [stop for curve in curves for stop in curve.points]
    where = [math.log10(stop.x) if fractions else stop.x for stop in stops]
    ends = [end for stop in stops for end in (stop.value, *stop.seeds, *(stop.interval_range or ()))]
    heights = ticks(min([*ends, *(height for _, height in baselines)]), max(ends), most=6)
    slack = (max(where) - min(where)) * 0.04 or 0.5
    axes = Axes(46, 26, 490, 250, (min(where) - slack, max(where) + slack), (heights[0], heights[-1]))
    parts = [_upright(axes, heights, unit)]
    for x in sorted(dict.fromkeys(stop.x for stop in stops)):
        at, y = axes.to_svg(math.log10(x) if fractions else x, heights[0])
        text = f"{100 * x:g} %" if fractions else f"{x:g}"
        parts.append(Markup('<path class="tick" d="M{:.1f} {:.1f}v4"/>').format(at, y))
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(at, y + 16, text))
    parts.append(_axis_name(axes, axis, 44))
    parts += [_baseline(axes, name, height) for name, height in baselines]
    for place, curve in enumerate(curves):
        shift = (place - (len(curves) - 1) / 2) * min(7.0, 36 / len(curves))
        parts.append(_curve(curve, axes, shift, fractions=fractions))
    return svg(title, 560, 326, parts)


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Move overlapping labels apart, keeping their order.

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


def _upright(axes: Axes, heights: Sequence[float], unit: str) -> Markup:
    parts: list[Markup] = []
    for height in heights:
        x, y = axes.to_svg(axes.x[0], height)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, axes.width))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:,.10g}</text>').format(x - 6, y + 3.5, height)
        )
    parts.append(Markup('<text class="axis" x="{}" y="{}">{}</text>').format(4, axes.top - 12, unit))
    return Markup("").join(parts)


def _axis_name(axes: Axes, name: str, below: float) -> Markup:
    return Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
        axes.left + axes.width, axes.top + axes.height + below - 8, name
    )


def _log_ticks(counts: Sequence[float]) -> list[float]:
    """Return powers of ten that enclose some counts; for a narrow range, also twice and five times these.

    Example:
        >>> _log_ticks([331_057, 1_249_216]), _log_ticks([3e5, 4e7])
        ([200000.0, 500000.0, 1000000.0, 2000000.0], [100000.0, 1000000.0, 10000000.0, 100000000.0])
    """
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    steps = (1, 2, 5) if max(counts) < 30 * min(counts) else (1,)
    stops = [float(step * 10**decade) for decade in range(low, max(high, low + 1) + 1) for step in steps]
    first = max(stop for stop in stops if stop <= min(counts))
    last = min(stop for stop in stops if stop >= max(counts) and stop > first)
    return [stop for stop in stops if first <= stop <= last]


def _bubble(bubble: Bubble, place: tuple[float, float], size: float, axes: Axes, colour: str) -> Markup:
    x, y = place
    fill = 'fill="none" stroke-dasharray="3 2"' if bubble.paper else 'fill-opacity=".6"'
    source = ", reported in the paper" if bubble.paper else ""
    total, trainable = format_parameters(bubble.trainable + bubble.frozen), format_parameters(bubble.trainable)
    tooltip = (
        f"{bubble.name}{source}: {bubble.value:.1f} with {trainable} trainable of {total} parameters, "
        f"{format_parameters(bubble.text)} of them in the text encoder"
    )
    reach = Markup("")
    if bubble.interval_range is not None:
        (_, low), (_, high) = (axes.to_svg(axes.x[0], end) for end in bubble.interval_range)
        reach = Markup('<path class="whisk" stroke="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(colour, x, low, high)
    circle = Markup(
        '<circle class="bubble" cx="{:.1f}" cy="{:.1f}" r="{:.1f}" stroke="{}" {}><title>{}</title></circle>'
    )
    filled = Markup(fill) if bubble.paper else Markup('fill="{}" {}').format(colour, Markup(fill))
    return reach + circle.format(x, y, size, colour, filled, tooltip)


def _labels(bubbles: Sequence[Bubble], places: Sequence[tuple[tuple[float, float], float]], axes: Axes) -> list[Markup]:
    """Place names next to their bubbles, on the side with space, moved apart and linked by a hairline."""
    parts: list[Markup] = []
    sides = [
        x + size + 6 + len(bubble.name) * _LETTER > axes.left + axes.width
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


def _numbers(
    bubbles: Sequence[Bubble], places: Sequence[tuple[tuple[float, float], float]], axes: Axes
) -> list[Markup]:
    """Place numbers close to their bubbles, where they overlap the fewest bubbles and numbers."""
    parts: list[Markup] = []
    occupied: list[tuple[float, float]] = []
    for bubble, ((x, y), size) in zip(bubbles, places, strict=True):
        if not bubble.number:
            continue
        spots = [
            (x + (size + reach) * math.cos(turn * math.pi / 4), y - (size + reach) * math.sin(turn * math.pi / 4))
            for reach in (7 + 2 * len(str(bubble.number)), 17, 27, 37)
            for turn in (0, 4, 1, 3, 7, 5, 2, 6)
        ]
        spot = min(spots, key=lambda spot: _overlap(spot, occupied, places, axes))  # the first of equals is the nearest
        occupied.append(spot)
        if math.dist(spot, (x, y)) > size + 12:
            share = size / math.dist(spot, (x, y))
            start = x + share * (spot[0] - x), y + share * (spot[1] - y)
            parts.append(Markup('<path class="lead" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(*start, *spot))
        parts.append(_number(bubble, spot[0], spot[1] + 3.5))
    return parts


def _overlap(
    spot: tuple[float, float],
    occupied: Sequence[tuple[float, float]],
    places: Sequence[tuple[tuple[float, float], float]],
    axes: Axes,
) -> int:
    """Count what a number would overlap; numbers weigh more than bubbles."""
    x, y = spot
    outside = not (axes.left + 6 <= x <= axes.left + axes.width - 6 and axes.top + 6 <= y <= axes.top + axes.height - 6)
    numbers = sum(abs(x - other) < 14 and abs(y - height) < 11 for other, height in occupied)
    return 100 * outside + 4 * numbers + sum(math.dist(spot, place) < size + 6 for place, size in places)


def _number(bubble: Bubble, x: float, y: float) -> Markup:
    return Markup('<text class="number{}" x="{:.1f}" y="{:.1f}" text-anchor="middle" fill="{}">{}</text>').format(
        " paper" * bubble.paper, x, y, BLACK, bubble.number
    )


def _baseline(axes: Axes, name: str, height: float) -> Markup:
    x, y = axes.to_svg(axes.x[0], height)
    line = Markup('<path class="chance" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, axes.width)
    return line + Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
        x + axes.width, y - 4, name
    )


def _curve(curve: Curve, axes: Axes, shift: float, *, fractions: bool) -> Markup:
    colour, dash = series_style(curve.series)
    parts: list[Markup] = []
    path: list[str] = []
    for stop in curve.points:
        x, y = axes.to_svg(math.log10(stop.x) if fractions else stop.x, stop.value)
        path.append(f"{x + shift:.1f} {y:.1f}")
        if stop.interval_range is not None:
            (_, low), (_, high) = (axes.to_svg(axes.x[0], end) for end in stop.interval_range)
            parts.append(
                Markup('<path class="whisk" stroke="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                    colour, x + shift, low, high
                )
            )
        for value in stop.seeds if len(stop.seeds) > 1 else ():
            parts.append(
                Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="1.8" stroke="{}"/>').format(
                    x + shift, axes.to_svg(axes.x[0], value)[1], colour
                )
            )
        parts.append(series_marker(curve.series, x + shift, y))
    line = Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format("L".join(path), colour, dash)
    return Markup('<g role="presentation">{}<title>{}</title></g>').format(line + Markup("").join(parts), curve.name)


class Figure(NamedTuple):
    """A chart of the complete study."""

    title: str
    figure: Markup
    legend: Sequence[tuple[Markup, str]]
    caption: str


def study_figures(study_results: StudyResults) -> list[Figure]:
    """Return every chart for which the study has enough results."""
    figures = [_parameters_figure(study_results)]
    figures += [figure for column in study_results.study.columns for figure in [_length_figure(study_results, column)]]
    figures += _fraction_figures(study_results)
    return [figure for figure in figures if figure is not None]


def _parameters_figure(study_results: StudyResults) -> Figure | None:
    """Draw accuracy against trainable parameters (the paper's Figure 1), for the first zero-shot column."""
    for column in study_results.study.columns:
        if not column.key.endswith("zero-shot") or "accuracy" not in column.metrics:
            continue
        bubbles: list[Bubble] = []
        for row in study_results.study.rows:
            number, trainable = study_results.summary(row, column, "accuracy"), row.facts.get("trainable", 0.0)
            if number.value is not None and trainable >= 1:
                reach = (
                    None
                    if number.interval_range is None
                    else (100 * number.interval_range[0], 100 * number.interval_range[1])
                )
                frozen, text = row.facts.get("frozen", 0.0), row.facts.get("trainable_text", 0.0)
                bubbles.append(Bubble(row.label, trainable, frozen, 100 * number.value, reach, False, text))
        if not bubbles or (len(bubbles) > 1 and len({bubble.trainable for bubble in bubbles}) == 1):
            continue  # all rows have the same size, as for context lengths
        for row in (
            study_results.study.rows if study_results.study.scale == "paper" else ()
        ):  # small encoders are decades away
            paper = quoted("table1", row.key, column.key, "accuracy")
            if paper is not None and row.key in PARAMETERS:
                trainable, frozen, text = PARAMETERS[row.key]
                name = f"{row.label} (paper)"
                bubbles.append(Bubble(name, trainable, frozen, 100 * paper.value, None, True, text))
        title = f"{column.label}: accuracy against trainable parameters"
        caption = (
            "Diameter: trainable parameters of the model; colour: those of its text encoder, as in the paper’s "
            "Figure 1. Vertical lines: lowest to highest limit of the seeds’ 95 % confidence intervals."
        )
        if any(bubble.paper for bubble in bubbles):
            caption += (
                " Dashed and hollow: accuracy reported in the paper, at parameter counts derived from its "
                "configurations (without the projection heads of CLIP)."
            )
        if len(bubbles) > _NAMED:
            bubbles = _numbered(bubbles)
        legend = [(number_key(bubble), bubble.name) for bubble in bubbles if bubble.number] + text_key(bubbles)
        return Figure(title, bubble_chart(title, bubbles, unit="accuracy, %"), legend, caption)
    return None


_NAMED = 7
"""Most bubbles that are named in the chart; more are numbered, with a legend."""


def _numbered(bubbles: Sequence[Bubble]) -> list[Bubble]:
    return [bubble._replace(number=place) for place, bubble in enumerate(bubbles, 1)]


def _length_figure(study_results: StudyResults, column: StudyLine) -> Figure | None:
    """Draw a metric against the length of the learned context (the paper's Figure 3)."""
    rows = sorted(
        (row for row in study_results.study.rows if "length" in row.facts), key=lambda row: row.facts["length"]
    )
    metric = next(iter(column.metrics), "")
    stops = [
        _point(row.facts["length"], metric, number)
        for row in rows
        if (number := study_results.summary(row, column, metric)).value is not None
    ]
    if len({stop.x for stop in stops}) < 2:
        return None  # all rows have the same length, as in Table 1
    title = f"{column.label}: {axis_label(metric)} against context length"
    chart = curve_chart(
        title,
        [Curve("mean over seeds", 0, stops)],
        unit=_unit(metric),
        axis="learned context vectors",
        baselines=_baselines(study_results, column, metric),
    )
    return Figure(title, chart, [], _CAPTION)


_CAPTION = (
    "Mean over seeds. Vertical lines: lowest to highest limit of the seeds’ 95 % confidence intervals. Small circles: "
    "seeds. Dotted lines: baselines without a model."
)


def _fraction_figures(study_results: StudyResults) -> list[Figure]:
    """Draw each metric against the share of training patients, for tasks with at least two shares."""
    series: dict[tuple[str, str], dict[str, list[tuple[float, StudyLine]]]] = {}
    for column in study_results.study.columns:
        shares = {seed.evaluation.training_fraction for seed in study_results.seeds(column) if seed.evaluation.protocol}
        if len(shares) == 1:
            seed = next(seed for seed in study_results.seeds(column) if seed.evaluation.protocol)
            place = series.setdefault((seed.evaluation.dataset, seed.evaluation.task), {})
            for metric in column.metrics:
                place.setdefault(metric, []).append((next(iter(shares)), column))
    return [
        _fraction_figure(study_results, metric, sorted(columns, key=lambda pair: pair[0]))
        for metrics in series.values()
        for metric, columns in metrics.items()
        if len({share for share, _ in columns}) > 1
    ]


def _without_share(label: str) -> str:
    """Return a column label without its last part.

    Example:
        >>> _without_share("RSNA, linear probe, 10 %")
        'RSNA, linear probe'
    """
    return label.rpartition(", ")[0] or label


def _fraction_figure(study_results: StudyResults, metric: str, columns: Sequence[tuple[float, StudyLine]]) -> Figure:
    curves: list[Curve] = []
    for series, row in enumerate(study_results.study.rows):
        stops = [
            _point(share, metric, number)
            for share, column in columns
            if (number := study_results.summary(row, column, metric)).value is not None
        ]
        if stops:
            curves.append(Curve(row.label, series, stops))
    title = f"{_without_share(columns[0][1].label)}: {axis_label(metric)} against share of training patients"
    chart = curve_chart(
        title,
        curves,
        unit=_unit(metric),
        axis="share of training patients (logarithmic)",
        baselines=_baselines(study_results, columns[0][1], metric),
        fractions=True,
    )
    return Figure(title, chart, [(series_key(curve.series), curve.name) for curve in curves], _CAPTION)


def _point(x: float, metric: str, number: MetricSummary) -> CurvePoint:
    scale = 100 if is_percent(metric) else 1
    reach = (
        None if number.interval_range is None else (scale * number.interval_range[0], scale * number.interval_range[1])
    )
    each = [scale * result.value for _, result in number.results if result.value is not None]
    return CurvePoint(x, scale * (number.value or 0.0), reach, each)


def _unit(metric: str) -> str:
    return f"{axis_label(metric)}, %" if is_percent(metric) else axis_label(metric)


def _baselines(study_results: StudyResults, column: StudyLine, metric: str) -> list[tuple[str, float]]:
    scale = 100 if is_percent(metric) else 1
    baselines = [(name, study_results.baseline(rule, column, metric)) for rule, name in BASELINES.items()]
    levels = [
        (name, scale * number.value) for name, number in baselines if number is not None and number.value is not None
    ]
    return [(name, value) for place, (name, value) in enumerate(levels) if value not in [v for _, v in levels[:place]]]
