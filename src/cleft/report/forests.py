"""Numbers side by side with their intervals as shapes on one line: subgroups, and one model against another."""

from __future__ import annotations

from collections.abc import Sequence

from cleft.correction import holm
from cleft.grammar import count
from cleft.report.cells import (
    FEWEST_PATIENTS,
    SHARES,
    TOO_FEW,
    Cell,
    Footnotes,
    Row,
    Table,
    printed,
    printed_end,
    printed_range,
)
from cleft.report.figures import INK, style, swatch, whisker
from cleft.report.tables import HEADINGS, Entry, enclosed, metric_name
from cleft.types import Comparison, Difference, Result, Subgroups


def subgroup_table(group: Sequence[Entry], by: str) -> Table | None:
    """Accuracy and AUC of each group of patients, one line per model, and the gap between best and worst.

    Args:
        group: Evaluations of the same images.
        by: What the groups are told apart by; a model that knows no such groups is left out.
    """
    told = [(entry, found) for entry in group if (found := _by(entry, by)) is not None]
    if not told:
        return None
    notes = Footnotes()
    spans = {metric: _span(told, metric) for metric in HEADINGS}
    rows: list[Row] = []
    for entry, found in told:
        if len(told) > 1:
            rows.append(Row(kind="heading", label=entry.label, swatch=swatch(entry.series)))
        overall = {result.metric: result for result in entry.evaluation.results}
        synthetic = entry.evaluation.synthetic
        for each in found.groups:
            people = f"{count(each.images, 'image')} of {count(each.patients, 'patient')}"
            few = not synthetic and each.patients < FEWEST_PATIENTS
            rows.append(
                Row(
                    kind="model",
                    label=each.name,
                    sublabel=TOO_FEW if few else people,
                    cells=[
                        _cell(_named(each.results, metric), spans[metric], entry, overall.get(metric), notes, few=few)
                        for metric in HEADINGS
                    ],
                )
            )
        rows.append(_gap(found, notes))
    ends = [(printed_end(metric, low), printed_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADINGS.values()), ends=ends, rows=rows, footnotes=notes.listed())


def _by(entry: Entry, by: str) -> Subgroups | None:
    return next((found for found in entry.evaluation.subgroups if found.by == by), None)


def _named(results: Sequence[Result], metric: str) -> Result | None:
    return next((result for result in results if result.metric == metric), None)


def _span(told: Sequence[tuple[Entry, Subgroups]], metric: str) -> tuple[float, float]:
    seen: list[float] = []
    for entry, found in told:
        for results in (entry.evaluation.results, *(each.results for each in found.groups)):
            result = _named(results, metric)
            if result is not None and result.value is not None:
                seen += [result.value, *(result.interval or ())]
    return enclosed(seen or [0.5])


def _cell(
    result: Result | None,
    span: tuple[float, float],
    entry: Entry,
    overall: Result | None,
    notes: Footnotes,
    *,
    few: bool,
) -> Cell:
    if result is None or result.value is None or few:
        reason = TOO_FEW if few else (result.reason if result else None) or "not measured"
        return Cell(text="–", note=notes.letter(reason), title=reason)
    level = overall.value if overall is not None and overall.value is not None else -1.0
    return Cell(
        text=printed(result.metric, result.value),
        detail=printed_range(result.metric, result.interval) if result.interval else "no interval",
        note=notes.letter(result.reason),
        picture=whisker(result.value, result.interval, span, kind="model", colour=style(entry.series)[0], level=level),
    )


def _gap(found: Subgroups, notes: Footnotes) -> Row:
    cells: list[Cell] = []
    for metric in HEADINGS:
        gap = _named(found.gaps, metric)
        if gap is None or gap.value is None:
            reason = (gap.reason if gap else None) or "the result file holds no gap"
            cells.append(Cell(text="–", note=notes.letter(reason), title=reason))
            continue
        detail = ", ".join(filter(None, [_reach(metric, gap.interval), gap.reason]))
        cells.append(Cell(text=points(metric, gap.value), detail=detail))
    left = [f"{count(found.left_out, 'image')} in smaller groups"] * bool(found.left_out)
    left += [f"{found.unknown:,} of which it is not known"] * bool(found.unknown)
    return Row(kind="mean", label="Best minus worst", sublabel="; ".join(left), cells=cells)


def _reach(metric: str, interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{points(metric, interval[0])} to {points(metric, interval[1])}"


def points(metric: str, difference: float) -> str:
    """A difference with its sign, of shares in percentage points.

    Example:
        >>> points("accuracy", 0.031), points("auc", -0.02)
        ('+3.1', '−0.020')
    """
    shares = metric.split("/")[0].partition("@")[0] in SHARES
    text = f"{100 * difference:+.1f}" if shares else f"{difference:+.3f}"
    return text.replace("-", "\u2212")


def corrected_comparisons(comparisons: Sequence[Comparison]) -> tuple[list[list[float | None]], int]:
    """Corrects the p-values of all comparisons of a page, as one family.

    Returns:
        Of each comparison the Holm-corrected p-values of its differences; and the number of differences tested.
    """
    corrected = holm([each.p_value for comparison in comparisons for each in comparison.differences])
    waiting = iter(corrected.p_values)
    return [[next(waiting) for _ in comparison.differences] for comparison in comparisons], corrected.family


def comparison_table(comparison: Comparison, corrected: Sequence[float | None] | None = None) -> Table:
    """What one model has over another on the same images, metric by metric.

    Args:
        comparison: The two models.
        corrected: P-value of each difference after correction for all comparisons of the page; by default for this
            one alone.
    """
    corrected = corrected_comparisons([comparison])[0][0] if corrected is None else corrected
    notes = Footnotes()
    rows = [
        _compared(difference, comparison, notes, p_holm)
        for difference, p_holm in zip(comparison.differences, corrected, strict=True)
    ]
    reach = comparison_reach(comparison)
    return Table(
        columns=[comparison.first, comparison.second, "First minus second", "p", "p, corrected"],
        ends=[("", ""), ("", ""), (f"\u2212{reach:.1f}", f"+{reach:.1f}"), ("", ""), ("", "")],
        rows=rows,
        footnotes=notes.listed(),
    )


def comparison_reach(comparison: Comparison) -> float:
    """How far the line of differences goes to both sides, in tenths."""
    seen = [
        abs(end)
        for each in comparison.differences
        if each.difference is not None
        for end in (each.difference, *(each.interval or ()))
    ]
    return enclosed([0.0, *seen])[1]


def _compared(difference: Difference, comparison: Comparison, notes: Footnotes, corrected: float | None) -> Row:
    few = not comparison.synthetic and 0 < difference.patients < FEWEST_PATIENTS
    reason = TOO_FEW if few else difference.reason
    letter = notes.letter(reason)
    metric, reach = difference.metric, comparison_reach(comparison)
    values = [
        Cell(text="–" if value is None or few else printed(metric, value))
        for value in (difference.first, difference.second)
    ]
    if difference.difference is None or few:
        cells = [*values, Cell(text="–", note=letter, title=reason or ""), Cell(text="–"), Cell(text="–")]
    else:
        drawn = whisker(
            difference.difference, difference.interval, (-reach, reach), kind="model", colour=INK, level=0.0
        )
        told = points(metric, difference.difference)
        cells = [
            *values,
            Cell(text=told, detail=_reach(metric, difference.interval), note=letter, picture=drawn),
            Cell(text=_printed_p(difference.p_value)),
            Cell(text=_printed_p(corrected)),
        ]
    return Row(kind="model", label=metric_name(metric), cells=cells)


def _printed_p(p: float | None) -> str:
    return "–" if p is None else "<0.01" if p < 0.01 else f"{p:.2f}"
