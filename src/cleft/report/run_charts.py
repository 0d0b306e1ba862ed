"""Charts and tables of a result: training curves, reliability diagrams, embedding maps, subgroups, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.grammar import count
from cleft.privacy import MIN_PATIENTS
from cleft.report.charts import (
    BLACK,
    COLOURS,
    GREY,
    Axes,
    Points,
    gridlines,
    legend_line,
    line_chart,
    series_marker,
    series_style,
    svg,
    ticks,
    whisker,
)
from cleft.report.html import (
    PERCENT_METRICS,
    TOO_FEW,
    Cell,
    Footnotes,
    Row,
    Table,
    format_axis_end,
    format_interval,
    format_value,
    is_suppressed,
)
from cleft.report.runs import Run
from cleft.report.tables import HEADLINE_METRICS, Entry, enclosing_tenths, find_result, metric_name
from cleft.results import (
    Calibration,
    Comparison,
    ContextVector,
    Difference,
    EmbeddingMap,
    ReliabilityBin,
    Result,
    Subgroups,
    holm,
)

TOKENS = "tokens"
LINES = {"nodes": (TOKENS, "prefix tree"), "padded_tokens": (TOKENS, "padded")}
"""Logged quantities that share a chart: log column to chart and legend entry."""
ORDER = ("loss", "lr", "temperature", "gradient_norm", TOKENS)
SPLITS = {"train": "training", "val": "validation"}
NAMES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "logit_scale": "Inverse temperature",
    "temperature": "Temperature",
    "gradient_norm": "Gradient norm",
    TOKENS: "Caption tokens per step",
    "repeated_captions": "Fraction of repeated captions",
    "clamped_steps": "Steps with a clamped temperature",
    "seconds_per_step": "Seconds per step",
}


class Chart(NamedTuple):
    """One chart of a training log."""

    title: str
    figure: Markup
    legend: Sequence[tuple[Markup, str]]
    caption: str
    large: bool


def training_charts(run: Run) -> list[Chart]:
    """Return one chart per logged quantity, with all its splits; constant quantities but the loss are left out."""
    quantities: dict[str, dict[str, Points]] = {}
    for name, points in run.curves.items():
        quantity, split = _parts(name)
        quantities.setdefault(quantity, {})[split] = points
    ordered = sorted(quantities, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [_chart(name, quantities[name]) for name in ordered if name == "loss" or not _is_constant(quantities[name])]


def _is_constant(series: Mapping[str, Points]) -> bool:
    return len({value for points in series.values() for _, value in points}) <= 1


def _chart(quantity: str, series: Mapping[str, Points]) -> Chart:
    title = NAMES.get(quantity, quantity.replace("_", " ").capitalize())
    named = dict(sorted(series.items(), key=lambda item: item[0] != "training"))
    large = quantity == "loss"
    best = min(named["validation"], key=lambda point: point[1]) if large and "validation" in named else None
    caption = ""
    if best is not None:
        caption = f"Lowest validation loss {best[1]:.4g} at step {best[0]:,.0f} (circled)."
    legend = [(legend_line(index), name) for index, name in enumerate(named)] if len(named) > 1 else []
    figure = line_chart(f"{title} over optimiser steps", named, mark=best, large=large)
    return Chart(title, figure, legend, caption, large)


def _parts(name: str) -> tuple[str, str]:
    """Split the name of a log column into quantity and split.

    Example:
        >>> _parts("val/loss"), _parts("lr-AdamW")
        (('loss', 'validation'), ('lr-AdamW', ''))
    """
    head, _, tail = name.rpartition("/")
    if tail in LINES:
        return LINES[tail]
    split = next((SPLITS[part] for part in head.split("/") if part in SPLITS), head)
    return tail, split


def reliability_chart(title: str, calibration: Calibration, series: int, *, synthetic: bool) -> Markup:
    """Draw a reliability diagram, before (filled) and after temperature scaling (hollow).

    Args:
        title: Text alternative for screen readers.
        calibration: Its bins; those of too few patients are not drawn.
        series: Index that determines colour and marker.
        synthetic: Whether the images are synthetic, so that all bins are drawn.
    """
    axes = Axes(30, 8, 160, 160, (0, 1), (0, 1))
    (x0, y0), (x1, y1) = axes.to_svg(0, 0), axes.to_svg(1, 1)
    parts = [
        gridlines(axes, [0, 0.5, 1], [0, 0.5, 1]),
        Markup('<path class="chance" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x0, y0, x1, y1),
    ]
    after = [_bin_position(axes, each) for each in _printable_bins(calibration.bins_after, synthetic)]
    if after:
        parts.append(_path(after, GREY, "2 3"))
        ring = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.8" fill="#fff" stroke="{}"/>')
        parts += [ring.format(x, y, GREY) for x, y in after]
    before = [_bin_position(axes, each) for each in _printable_bins(calibration.bins, synthetic)]
    if before:
        parts.append(_path(before, COLOURS[series % len(COLOURS)], ""))
        parts += [series_marker(series, x, y, 3) for x, y in before]
    parts.append(Markup('<text class="axis" x="190" y="197" text-anchor="end">predicted probability</text>'))
    return svg(title, 200, 202, parts)


def _printable_bins(bins: Sequence[ReliabilityBin], synthetic: bool) -> list[ReliabilityBin]:
    return [each for each in bins if synthetic or each.patients >= MIN_PATIENTS]


def _bin_position(axes: Axes, each: ReliabilityBin) -> tuple[float, float]:
    return axes.to_svg(each.predicted, each.observed)


def _path(places: Sequence[tuple[float, float]], colour: str, dash: str) -> Markup:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return Markup('<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"/>').format(path, colour, dash)


def embedding_chart(
    title: str, embedding_map: EmbeddingMap, classes: Sequence[str], hidden: Sequence[str] = ()
) -> Markup:
    """Draw a 2-D projection of the embeddings: images as small markers of their class, class prompts circled and named.

    Args:
        title: Text alternative for screen readers.
        embedding_map: Coordinates of images and prompts.
        classes: Class names, by index.
        hidden: Classes with too few images to be drawn.
    """
    shown = [(index, x, y) for index, x, y in embedding_map.images if classes[index] not in hidden]
    places = [(x, y) for _, x, y in shown] + list(embedding_map.prompts)
    size = max(*(abs(coordinate) for place in places for coordinate in place), 1e-6) * 1.06
    axes = Axes(6, 6, 348, 348, (-size, size), (-size, size))
    (middle_x, middle_y) = axes.to_svg(0, 0)
    parts = [
        Markup('<rect class="frame" x="6" y="6" width="348" height="348"/>'),
        Markup('<path class="grid" d="M6 {:.1f}H354M{:.1f} 6V354"/>').format(middle_y, middle_x),
    ]
    dots = [series_marker(index, *axes.to_svg(x, y), size=2.4) for index, x, y in shown]
    parts.append(Markup('<g class="cloud">{}</g>').format(Markup("").join(dots)))
    spots = [axes.to_svg(x, y) for x, y in embedding_map.prompts]
    for index, (x, y) in enumerate(spots):
        parts.append(Markup('<circle class="prompt" cx="{:.1f}" cy="{:.1f}" r="6.5"/>').format(x, y))
        parts.append(series_marker(index, x, y, 3.4))
    name = Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    parts += [name.format(*place, text) for place, text in zip(place_names(spots, classes), classes, strict=True)]
    return svg(title, 360, 360, parts)


def place_names(spots: Sequence[tuple[float, float]], names: Sequence[str]) -> list[tuple[float, float, str]]:
    """Place the names of points to their right or left, above or below, wherever they overlap least.

    Returns:
        Coordinates and text anchor of each name, in a chart of 360 by 360.
    """
    occupied = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    placed: list[tuple[float, float, str]] = []
    for (x, y), name in zip(spots, names, strict=True):
        width = 6.2 * len(name)
        options = [
            (x + 10, y + 4, "start", (x + 10, y - 6, x + 10 + width, y + 6)),
            (x - 10, y + 4, "end", (x - 10 - width, y - 6, x - 10, y + 6)),
            (x, y - 10, "middle", (x - width / 2, y - 20, x + width / 2, y - 8)),
            (x, y + 18, "middle", (x - width / 2, y + 8, x + width / 2, y + 20)),
        ]
        best = min(options, key=lambda option: sum(_covered(option[3], other) for other in [*occupied, *_OUTSIDE]))
        occupied.append(best[3])
        placed.append(best[:3])
    return placed


_Corners = tuple[float, float, float, float]
_OUTSIDE: tuple[_Corners, ...] = (
    (-999, -999, 4, 999),
    (356, -999, 999, 999),
    (-999, -999, 999, 4),
    (-999, 356, 999, 999),
)
"""Area outside the chart."""


def _covered(one: _Corners, other: _Corners) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def norms_chart(title: str, context: Sequence[ContextVector], token_norm: float | None) -> Markup:
    """Draw the norm of each context vector, its distance from initialisation (circle) and the token norm (dotted line).

    Args:
        title: Text alternative for screen readers.
        context: At least one vector, in order of position.
        token_norm: Mean norm of the language model's token embeddings.
    """
    seen = [vector.norm for vector in context] + [
        vector.displacement for vector in context if vector.displacement is not None
    ]
    heights = ticks(0, max([*seen, token_norm or 0.0]), most=5)
    axes = Axes(46, 22, 490, 170, (0.0, len(context) + 1.0), (heights[0], heights[-1]))
    places = [vector.position for vector in context]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(places)) if len(places) <= 12 * step)
    shown = [place for place in places if place == 1 or place % step == 0]
    parts = [gridlines(axes, shown, heights)]
    for vector in context:
        (x, y), (_, base) = axes.to_svg(vector.position, vector.norm), axes.to_svg(vector.position, heights[0])
        parts.append(
            Markup(
                '<g role="presentation"><path class="stem" d="M{x:.1f} {base:.1f}V{y:.1f}" stroke="{colour}"/>'
                '<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/><title>{title}</title></g>'
            ).format(x=x, y=y, base=base, colour=COLOURS[0], title=f"vector {vector.position}: norm {vector.norm:.3g}")
        )
        if vector.displacement is not None:
            _, moved = axes.to_svg(vector.position, vector.displacement)
            parts.append(
                Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3" fill="#fff" stroke="{}"/>').format(
                    x, moved, COLOURS[1]
                )
            )
    if token_norm is not None:
        x, y = axes.to_svg(0, token_norm)
        parts.append(Markup('<path class="chance" d="M{:.1f} {:.1f}h{:.1f}"/>').format(x, y, axes.width))
    parts.append(Markup('<text class="axis" x="4" y="12">norm</text>'))
    parts.append(Markup('<text class="axis" x="536" y="226" text-anchor="end">position in the context</text>'))
    return svg(title, 560, 232, parts)


def subgroup_table(group: Sequence[Entry], by: str) -> Table | None:
    """Return accuracy and AUC by patient group for each model, and the difference between best and worst group.

    Args:
        group: Evaluations of the same images.
        by: Attribute that defines the groups; models without results by this attribute are left out.
    """
    members = [(entry, subgroups) for entry in group if (subgroups := _subgroups_by(entry, by)) is not None]
    if not members:
        return None
    notes = Footnotes()
    spans = {metric: _span(members, metric) for metric in HEADLINE_METRICS}
    rows: list[Row] = []
    for entry, subgroups in members:
        if len(members) > 1:
            rows.append(Row(kind="heading", label=entry.label, swatch=legend_line(entry.series)))
        levels = {result.metric: result.value for result in entry.evaluation.results}
        synthetic = entry.evaluation.synthetic
        for each in subgroups.groups:
            people = f"{count(each.images, 'image')} of {count(each.patients, 'patient')}"
            few = not synthetic and each.patients < MIN_PATIENTS
            rows.append(
                Row(
                    kind="model",
                    label=each.name,
                    sublabel=TOO_FEW if few else people,
                    cells=[
                        interval_cell(
                            entry,
                            find_result(each.results, metric),
                            notes,
                            spans[metric],
                            level=levels.get(metric),
                            suppressed=few,
                        )
                        for metric in HEADLINE_METRICS
                    ],
                )
            )
        rows.append(_gap(subgroups, notes))
    ends = [(format_axis_end(metric, low), format_axis_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADLINE_METRICS.values()), axis_ends=ends, rows=rows, footnotes=notes.items())


def _subgroups_by(entry: Entry, by: str) -> Subgroups | None:
    return next((subgroups for subgroups in entry.evaluation.subgroups if subgroups.by == by), None)


def _span(members: Sequence[tuple[Entry, Subgroups]], metric: str) -> tuple[float, float]:
    seen: list[float] = []
    for entry, subgroups in members:
        for results in (entry.evaluation.results, *(each.results for each in subgroups.groups)):
            result = find_result(results, metric)
            if result is not None and result.value is not None:
                seen += [result.value, *(result.interval or ())]
    return enclosing_tenths(seen or [0.5])


def interval_cell(
    entry: Entry,
    result: Result | None,
    notes: Footnotes,
    span: tuple[float, float] | None = None,
    *,
    level: float | None = None,
    suppressed: bool = False,
) -> Cell:
    """Return the cell of a result with its interval.

    Args:
        entry: Evaluation of the result.
        result: The result; None and results without a value are a dash with a reason.
        notes: Footnotes of the table.
        span: Range of the axis on which the interval is drawn; None for no chart.
        level: Position of the reference line.
        suppressed: Whether the result rests on too few patients to be printed.
    """
    if result is None or result.value is None or suppressed or is_suppressed(result, entry.evaluation):
        reason = TOO_FEW if suppressed else (result.reason if result else None) or "not measured"
        return Cell(text="–", note=notes.letter(reason), title=reason)
    colour, reference = series_style(entry.series)[0], -1.0 if level is None else level
    chart = whisker(result.value, result.interval, span, kind="model", colour=colour, level=reference) if span else ""
    return Cell(
        text=format_value(result.metric, result.value),
        detail=format_interval(result.metric, result.interval) if result.interval else "no interval",
        note=notes.letter(result.reason),
        chart=chart,
    )


def _gap(subgroups: Subgroups, notes: Footnotes) -> Row:
    cells: list[Cell] = []
    for metric in HEADLINE_METRICS:
        gap = find_result(subgroups.gaps, metric)
        if gap is None or gap.value is None:
            reason = (gap.reason if gap else None) or "no difference in the result file"
            cells.append(Cell(text="–", note=notes.letter(reason), title=reason))
            continue
        detail = ", ".join(filter(None, [_format_range(metric, gap.interval), gap.reason]))
        cells.append(Cell(text=format_difference(metric, gap.value), detail=detail))
    left = [f"{count(subgroups.left_out, 'image')} in smaller groups"] * bool(subgroups.left_out)
    left += [f"{count(subgroups.unknown, 'image')} without this attribute"] * bool(subgroups.unknown)
    return Row(kind="mean", label="Best minus worst", sublabel="; ".join(left), cells=cells)


def _format_range(metric: str, interval: tuple[float, float] | None) -> str:
    return (
        "no interval"
        if interval is None
        else f"{format_difference(metric, interval[0])} to {format_difference(metric, interval[1])}"
    )


def format_difference(metric: str, difference: float) -> str:
    """Format a difference with its sign; accuracy-like metrics in percentage points.

    Example:
        >>> format_difference("accuracy", 0.031), format_difference("auc", -0.02)
        ('+3.1', '−0.020')
    """
    in_percent = metric.split("/")[0].partition("@")[0] in PERCENT_METRICS
    text = f"{100 * difference:+.1f}" if in_percent else f"{difference:+.3f}"
    return text.replace("-", "\u2212")


def corrected_comparisons(comparisons: Sequence[Comparison]) -> tuple[list[list[float | None]], int]:
    """Correct the p-values of all comparisons on a page as one family.

    Returns:
        Holm-corrected p-values of the differences of each comparison; and the number of tests.
    """
    corrected = holm([each.p_value for comparison in comparisons for each in comparison.differences])
    waiting = iter(corrected.p_values)
    return [[next(waiting) for _ in comparison.differences] for comparison in comparisons], corrected.family


def comparison_table(comparison: Comparison, corrected: Sequence[float | None] | None = None) -> Table:
    """Return the difference between two models on the same images for each metric.

    Args:
        comparison: The two models.
        corrected: P-value of each difference after correction for all comparisons on the page; by default for this
            one alone.
    """
    corrected = corrected_comparisons([comparison])[0][0] if corrected is None else corrected
    notes = Footnotes()
    rows = [
        _comparison_row(difference, comparison, notes, p_holm)
        for difference, p_holm in zip(comparison.differences, corrected, strict=True)
    ]
    limit = difference_limit(comparison)
    return Table(
        columns=[comparison.first, comparison.second, "Difference", "p", "p (Holm)"],
        axis_ends=[("", ""), ("", ""), (f"\u2212{limit:.1f}", f"+{limit:.1f}"), ("", ""), ("", "")],
        rows=rows,
        footnotes=notes.items(),
    )


def difference_limit(comparison: Comparison) -> float:
    """Return the limit of the symmetric axis of differences, in tenths."""
    seen = [
        abs(end)
        for each in comparison.differences
        if each.difference is not None
        for end in (each.difference, *(each.interval or ()))
    ]
    return enclosing_tenths([0.0, *seen])[1]


def _comparison_row(difference: Difference, comparison: Comparison, notes: Footnotes, corrected: float | None) -> Row:
    few = not comparison.synthetic and 0 < difference.patients < MIN_PATIENTS
    reason = TOO_FEW if few else difference.reason
    letter = notes.letter(reason)
    metric, limit = difference.metric, difference_limit(comparison)
    values = [
        Cell(text="–" if value is None or few else format_value(metric, value))
        for value in (difference.first, difference.second)
    ]
    if difference.difference is None or few:
        cells = [*values, Cell(text="–", note=letter, title=reason or ""), Cell(text="–"), Cell(text="–")]
    else:
        drawn = whisker(
            difference.difference, difference.interval, (-limit, limit), kind="model", colour=BLACK, level=0.0
        )
        change = format_difference(metric, difference.difference)
        cells = [
            *values,
            Cell(text=change, detail=_format_range(metric, difference.interval), note=letter, chart=drawn),
            Cell(text=_format_p(difference.p_value)),
            Cell(text=_format_p(corrected)),
        ]
    return Row(kind="model", label=metric_name(metric), cells=cells)


def _format_p(p: float | None) -> str:
    return "–" if p is None else "<0.01" if p < 0.01 else f"{p:.2f}"
