"""The table of a study: ours and the paper's in one place each, told apart by more than colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from cleft.correction import LEVEL, holm
from cleft.report.cells import Footnotes, weights
from cleft.report.grid import Grid, Number, Seed
from cleft.report.headings import METRICS, as_change, as_printed
from cleft.report.paper import quoted
from cleft.report.runs import shown
from cleft.report.tables import FLOORS
from cleft.types import Difference, Study, StudyLine

FACTS = {
    "moving": "Trainable parameters",
    "moving_text": "of these, text tower",
    "frozen": "Frozen parameters",
    "seconds": "Training, seconds",
    "length": "Context length",
    "fraction": "Share of the patients",
}


class Place(NamedTuple):
    """A cell of the page's table: ours and the paper's."""

    ours: str
    """Empty where neither was planned."""
    href: str
    """The result file; the lines of all seeds where there are several."""
    spread: str
    title: str
    note: str
    paper: str
    paper_title: str
    state: str


class Line(NamedTuple):
    """One row of the page's table."""

    kind: str
    label: str
    series: int
    places: Sequence[Place]
    band: str = ""
    """What stands above it and those like it."""
    note: str = ""
    """Letter of the footnote that says where its model comes from."""


class Against(NamedTuple):
    """One row of the table of differences."""

    label: str
    band: str
    places: Sequence[Change]


class Change(NamedTuple):
    """Difference of a row from the reference: value, interval, p-value as it is and corrected."""

    difference: str
    interval: str
    p_value: str
    apart: bool
    """Whether the corrected p-value is at most `LEVEL`."""


class Seen(NamedTuple):
    """One seed's number, with everything that stands behind it."""

    row: str
    metric: str
    seed: str
    value: str
    interval: str
    images: int
    patients: int
    file: str
    href: str
    anchor: str


def table_lines(grid: Grid, notes: Footnotes) -> list[Line]:
    """Rows, then floors; reasons become footnotes."""
    places = [(column, metric) for column in grid.study.columns for metric in column.metrics]
    lines: list[Line] = []
    for index, row in enumerate(grid.study.rows):
        letter = notes.letter(_provenance(grid, row))
        told = [_place(grid, row, column, metric, notes) for column, metric in places]
        lines.append(Line("model", row.label, index, told, _band(row), letter))
    for rule, name in FLOORS.items():
        numbers = [grid.floor(rule, column, metric) for column, metric in places]
        if any(numbers):
            told = [_floor(metric, number, notes) for (_, metric), number in zip(places, numbers, strict=True)]
            lines.append(Line("floor", name, 0, told, "Floors: what rules reach on the same images"))
    return lines


def _place(grid: Grid, row: StudyLine, column: StudyLine, metric: str, notes: Footnotes) -> Place:
    number = grid.number(row, column, metric)
    paper = quoted(grid.study.name, row.key, column.key, metric)
    filled = grid.filled.get((row.key, column.key))
    state = "done" if number.value is not None else "absent" if filled is None else filled.cell.state
    href = ""
    if len(number.results) == 1:
        href = _link(number.results[0][0])
    elif number.results:
        href = f"#{_anchor(grid, row, column, metric)}"
    elif filled is not None and filled.seeds:
        href = _link(filled.seeds[0])
    return Place(
        ours="–" if number.value is None else as_printed(metric, number.value),
        href=href,
        spread=_spread(metric, number),
        title=_told(metric, number),
        note=notes.letter(number.reason),
        paper=paper.printed + paper.marks if paper else "",
        paper_title="; ".join(paper.notes) if paper else "",
        state=state,
    )


def _provenance(grid: Grid, row: StudyLine) -> str:
    """Where a model comes from that was given, and what its results say of patients it may know."""
    known: dict[str, list[str]] = {}
    for column in grid.study.columns:
        filled = grid.filled.get((row.key, column.key))
        for note in dict.fromkeys(
            note.rstrip(".")
            for seed in (filled.seeds if filled is not None and row.origin else ())
            for note in seed.evaluation.notes
            if "were trained on" in note or "was trained on" in note
        ):
            known.setdefault(note, []).append(column.label)
    asked = sum(cell.row == row.key and bool(cell.results) for cell in grid.study.cells)
    told = [note if len(where) == asked else f"{' and '.join(where)}: {note}" for note, where in known.items()]
    return ". ".join(filter(None, [shown("origin", row.origin) if row.origin else "", *told]))


def _spread(metric: str, number: Number) -> str:
    if number.value is None:
        return ""
    if number.spread is not None:
        return f"± {as_printed(metric, number.spread)}"
    return "" if number.reach is None else "–".join(as_printed(metric, end) for end in number.reach)


def _told(metric: str, number: Number) -> str:
    """Each seed's number with its interval, for the pointer."""
    if number.value is None:
        return number.reason or ""
    parts = [
        f"{as_printed(metric, result.value)}"
        + (f" [{'–'.join(as_printed(metric, end) for end in result.interval)}]" if result.interval else "")
        for _, result in number.results
        if result.value is not None
    ]
    count = "one seed" if len(parts) == 1 else f"{len(parts)} seeds"
    return f"{count}: {', '.join(parts)}"


def _floor(metric: str, number: Number | None, notes: Footnotes) -> Place:
    none = number is None or number.value is None
    text = "" if number is None else "–" if number.value is None else as_printed(metric, number.value)
    href = _link(number.results[0][0]) if number is not None and not none else ""
    return Place(text, href, "", "", notes.letter(number.reason if number else None), "", "", "floor")


def _link(seed: Seed) -> str:
    return quote(seed.file)


def _anchor(grid: Grid, row: StudyLine, column: StudyLine, metric: str) -> str:
    study = grid.study
    return f"n-{study.rows.index(row)}-{study.columns.index(column)}-{column.metrics.index(metric)}"


def corrected_p_values(grid: Grid) -> tuple[dict[tuple[str, str, str], float], int]:
    """Corrects the p-values of all differences that the page of a study shows, as one family.

    Returns:
        Row, column and metric to the Holm-corrected p-value; and the number of comparisons.
    """
    shown = {column.key: column.metrics for column in grid.study.columns}
    tested = {
        (cell.row, cell.column, each.metric): each.p_value
        for cell in grid.study.cells
        for each in cell.differences
        if each.p_value is not None and each.metric in shown.get(cell.column, ())
    }
    corrected = holm(list(tested.values()))
    found = zip(tested, corrected.p_values, strict=True)
    return {place: p for place, p in found if p is not None}, corrected.family


def differences(grid: Grid) -> list[Against]:
    """Every row that was held against the reference of the study."""
    corrected, _ = corrected_p_values(grid)
    told: list[Against] = []
    for row in grid.study.rows:
        cells = {cell.column: cell for cell in grid.study.cells if cell.row == row.key and cell.differences}
        places = [
            _change(
                metric,
                cells[column.key].differences if column.key in cells else (),
                corrected.get((row.key, column.key, metric)),
            )
            for column in grid.study.columns
            for metric in column.metrics
        ]
        if cells:
            told.append(Against(row.label, _band(row), places))
    return told


def _change(metric: str, found: Sequence[Difference], corrected: float | None) -> Change:
    each = next((each for each in found if each.metric == metric), None)
    if each is None or each.difference is None:
        return Change("–", "", "", apart=False)
    if each.interval is None:
        return Change(as_change(metric, each.difference), "", "", apart=False)
    ends = " ".join(as_change(metric, end) for end in each.interval)
    p_value = "" if each.p_value is None else f"p {each.p_value:.3f}"
    if corrected is not None:
        p_value += f", corrected {corrected:.3f}"
    return Change(as_change(metric, each.difference), ends, p_value, apart=corrected is not None and corrected <= LEVEL)


def _band(row: StudyLine) -> str:
    return row.heading[:1].upper() + row.heading[1:]


def every_seed(grid: Grid, column: StudyLine) -> list[Seen]:
    """What the means under a heading are taken over."""
    found: list[Seen] = []
    for row in grid.study.rows:
        for metric in column.metrics:
            for place, (seed, result) in enumerate(grid.number(row, column, metric).results):
                interval = (
                    "–".join(as_printed(metric, end) for end in result.interval) if result.interval else "no interval"
                )
                found.append(
                    Seen(
                        row=row.label,
                        metric=METRICS.get(metric, metric),
                        seed=_seed(row, seed, place),
                        value=as_printed(metric, result.value or 0.0),
                        interval=interval,
                        images=result.images,
                        patients=result.patients,
                        file=seed.file,
                        href=_link(seed),
                        anchor=_anchor(grid, row, column, metric) if place == 0 else "",
                    )
                )
    return found


def _seed(row: StudyLine, seed: Seed, place: int) -> str:
    if seed.evaluation.protocol:
        return str(seed.evaluation.training_seed)
    return "–" if row.origin else str(place + 1)


def row_facts(study: Study) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """What is known of the rows besides their results: weights, cost, lengths; None where nothing is."""
    names = list(dict.fromkeys(name for row in study.rows for name in row.facts))
    if not names:
        return None
    heads = [FACTS.get(name, name.replace("_", " ").capitalize()) for name in names]
    told = [row for row in study.rows if row.facts]
    return heads, [(row.label, [_fact(name, row.facts.get(name)) for name in names]) for row in told]


def _fact(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "fraction":
        return f"{100 * value:g} %"
    if value >= 10_000 and name != "seconds":
        return weights(value)
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.3g}"
