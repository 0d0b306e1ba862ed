"""The figures of a study: accuracy against weights, context lengths, and shares of the training patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.figures import track_key
from cleft.report.grid import Grid, Number
from cleft.report.headings import in_percent, in_words
from cleft.report.paper import WEIGHTS, quoted
from cleft.report.plots import Bubble, Stop, Track, bubble_chart, number_key, text_key, track_chart
from cleft.report.tables import FLOORS
from cleft.types import StudyLine


class Figure(NamedTuple):
    """A figure of the whole study."""

    title: str
    figure: Markup
    legend: Sequence[tuple[Markup, str]]
    caption: str


def study_figures(grid: Grid) -> list[Figure]:
    """Whatever the study holds enough numbers for."""
    figures = [_weights_figure(grid)]
    figures += [figure for column in grid.study.columns for figure in [_length_figure(grid, column)]]
    figures += _fraction_figures(grid)
    return [figure for figure in figures if figure is not None]


def _weights_figure(grid: Grid) -> Figure | None:
    """Accuracy against trainable parameters (the paper's Figure 1), from the first heading with zero-shot accuracy."""
    for column in grid.study.columns:
        if not column.key.endswith("zero-shot") or "accuracy" not in column.metrics:
            continue
        bubbles: list[Bubble] = []
        for row in grid.study.rows:
            number, moving = grid.number(row, column, "accuracy"), row.facts.get("moving", 0.0)
            if number.value is not None and moving >= 1:
                reach = None if number.reach is None else (100 * number.reach[0], 100 * number.reach[1])
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


def _length_figure(grid: Grid, column: StudyLine) -> Figure | None:
    """Numbers against the length of the learned context (the paper's Figure 3)."""
    rows = sorted((row for row in grid.study.rows if "length" in row.facts), key=lambda row: row.facts["length"])
    metric = next(iter(column.metrics), "")
    stops = [
        _stop(row.facts["length"], metric, number)
        for row in rows
        if (number := grid.number(row, column, metric)).value is not None
    ]
    if len({stop.x for stop in stops}) < 2:
        return None  # one length, as in Table 1, tells nothing of lengths
    title = f"{column.label}: {in_words(metric)} against context length"
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


def _fraction_figures(grid: Grid) -> list[Figure]:
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


def _fraction_figure(grid: Grid, metric: str, columns: Sequence[tuple[float, StudyLine]]) -> Figure:
    tracks: list[Track] = []
    for series, row in enumerate(grid.study.rows):
        stops = [
            _stop(share, metric, number)
            for share, column in columns
            if (number := grid.number(row, column, metric)).value is not None
        ]
        if stops:
            tracks.append(Track(row.label, series, stops))
    title = f"{_without_share(columns[0][1].label)}: {in_words(metric)} against the share of the training patients"
    chart = track_chart(
        title,
        tracks,
        unit=_unit(metric),
        axis="share of the training patients, logarithmic",
        floors=_floors(grid, columns[0][1], metric),
        fractions=True,
    )
    return Figure(title, chart, [(track_key(track.series), track.name) for track in tracks], _REACH)


def _stop(x: float, metric: str, number: Number) -> Stop:
    scale = 100 if in_percent(metric) else 1
    reach = None if number.reach is None else (scale * number.reach[0], scale * number.reach[1])
    each = [scale * result.value for _, result in number.results if result.value is not None]
    return Stop(x, scale * (number.value or 0.0), reach, each)


def _unit(metric: str) -> str:
    return f"{in_words(metric)}, %" if in_percent(metric) else in_words(metric)


def _floors(grid: Grid, column: StudyLine, metric: str) -> list[tuple[str, float]]:
    scale = 100 if in_percent(metric) else 1
    found = [(name, grid.floor(rule, column, metric)) for rule, name in FLOORS.items()]
    told = [(name, scale * number.value) for name, number in found if number is not None and number.value is not None]
    return [(name, value) for place, (name, value) in enumerate(told) if value not in [v for _, v in told[:place]]]
