"""The table of a study: each cell with its result files, mean and spread over seeds, next to the paper's number.

All results of one column were measured on the same split and the same images; otherwise no table is written.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from cleft.correction import LEVEL, holm
from cleft.errors import CleftError, ConfigError, DataError
from cleft.files import read_limited
from cleft.privacy import redact
from cleft.report.html import TOO_FEW, Footnotes, format_parameters, is_suppressed
from cleft.report.paper import quoted
from cleft.report.tables import BASELINES
from cleft.results import Difference, Evaluation, Result, Study, StudyCell, StudyLine, from_json
from cleft.strict_json import find_json

SHORT_METRIC_NAMES = {
    "accuracy": "Acc.",
    "auc": "AUC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "mean-rank": "mean rank",
    "median-rank": "median rank",
}
"""How the head of a column calls a metric."""
_PERCENT = ("accuracy", "auc", "auprc", "sensitivity", "specificity", "recall", "precision", "f1")


class ColumnHeader(NamedTuple):
    """The head over several columns."""

    label: str
    span: int


def axis_label(metric: str) -> str:
    """A metric as the axis of a figure calls it."""
    return "accuracy" if metric == "accuracy" else SHORT_METRIC_NAMES.get(metric, metric)


def is_percent(metric: str) -> bool:
    """Whether a table prints a hundred times the number: all but ranks and errors.

    Example:
        >>> in_percent("image-to-text/recall@5"), in_percent("auc/Edema"), in_percent("image-to-text/mean-rank")
        (True, True, False)
    """
    return any(part.partition("@")[0] in _PERCENT for part in metric.split("/"))


def format_number(metric: str, value: float) -> str:
    """A number of a study as a table prints it, without its unit.

    Example:
        >>> as_printed("accuracy", 0.6674), as_printed("mean-rank", 12.25), as_printed("ece", 0.0381)
        ('66.7', '12.2', '0.038')
    """
    if is_percent(metric):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if "rank" in metric else f"{value:.3f}"


def format_difference(metric: str, value: float) -> str:
    """A difference of two numbers of a study, with its sign.

    Example:
        >>> as_change("accuracy", -0.0214), as_change("mean-rank", 1.5)
        ('−2.1', '+1.5')
    """
    return ("−" if value < 0 else "+") + format_number(metric, abs(value))


def column_headers(columns: Sequence[StudyLine]) -> list[list[ColumnHeader]]:
    """What stands over the metrics: datasets over tasks where labels say both, else the labels alone."""
    parts = [_parts(column.label) for column in columns if column.metrics]
    spans = [len(column.metrics) for column in columns if column.metrics]
    tasks = [ColumnHeader(task, span) for (_, task), span in zip(parts, spans, strict=True)]
    groups: list[ColumnHeader] = []
    for (group, _), span in zip(parts, spans, strict=True):
        if groups and groups[-1].label == group:
            groups[-1] = ColumnHeader(group, groups[-1].span + span)
        else:
            groups.append(ColumnHeader(group, span))
    return [groups, tasks] if any(group.label for group in groups) else [tasks]


def _parts(label: str) -> tuple[str, str]:
    """Dataset and task of a column.

    Example:
        >>> _parts("CheXpert-5x200, zero-shot"), _parts("Zero-shot")
        (('CheXpert-5x200', 'zero-shot'), ('', 'Zero-shot'))
    """
    group, _, task = label.rpartition(", ")
    return group, task


def column_borders(columns: Sequence[StudyLine]) -> list[str]:
    """How each metric's column begins: a new dataset, a new task, or the same task."""
    found: list[str] = []
    last = ""
    for column in columns:
        group = _parts(column.label)[0]
        for place, _ in enumerate(column.metrics):
            found.append("" if place else "group" if group != last or not found else "task")
        last = group
    return found


STUDY_FILE = "study.json"
STATE_NAMES = {
    "planned": "not run yet",
    "missing": "data or weights were not given",
    "failed": "failed",
    "impossible": "cannot be asked",
}
"""What a cell without a result says; its own reason follows."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One result file of a cell."""

    file: str
    """Relative to the study's folder, with slashes."""
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class CellResults:
    """A cell and what its result files hold."""

    cell: StudyCell
    seeds: Sequence[SeedResult]
    problems: Sequence[str] = ()
    """Files that are named and could not be read."""


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric of one cell."""

    value: float | None
    """Mean over seeds."""
    spread: float | None = None
    """Standard deviation over seeds, with n - 1; None for fewer than two."""
    results: Sequence[tuple[SeedResult, Result]] = ()
    """What the mean is taken over."""
    reason: str | None = None
    """Why there is no value, or what it leaves out."""

    @property
    def interval_range(self) -> tuple[float, float] | None:
        """From the lowest to the highest end of the seeds' intervals; None where a seed has none."""
        intervals = [result.interval for _, result in self.results if result.interval is not None]
        if not intervals or len(intervals) < len(self.results):
            return None
        return min(low for low, _ in intervals), max(high for _, high in intervals)


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study with its results."""

    study: Study
    cells: Mapping[tuple[str, str], CellResults]

    def summary(self, row: StudyLine, column: StudyLine, metric: str) -> MetricSummary:
        """The mean of a metric over the seeds of a cell, or why there is none."""
        filled = self.cells.get((row.key, column.key))
        return MetricSummary(value=None, reason="not part of this study") if filled is None else _number(filled, metric)

    def baseline(self, rule: str, column: StudyLine, metric: str) -> MetricSummary | None:
        """What a rule reaches on the images of a column; None where no result of it says so."""
        name = f"{rule}/{metric}"
        for seed in self.seeds(column):
            result = next((floor for floor in seed.evaluation.floors if floor.metric == name), None)
            if result is not None:
                kept, reason = (
                    (None, TOO_FEW) if is_suppressed(result, seed.evaluation) else (result.value, result.reason)
                )
                return MetricSummary(value=kept, results=[(seed, result)], reason=reason)
        return None

    def seeds(self, column: StudyLine) -> Iterator[SeedResult]:
        """Every result under a heading, from the top."""
        for row in self.study.rows:
            filled = self.cells.get((row.key, column.key))
            yield from filled.seeds if filled is not None else ()

    def counts(self) -> dict[str, int]:
        """Cells by state; `done` where results were read."""
        states = [
            ("done" if filled.seeds else "unreadable") if filled.cell.state == "done" else filled.cell.state
            for filled in self.cells.values()
        ]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def check_study_file(folder: Path) -> None:
    """Refuse a folder whose `study.json` is not that of a study, because it would be replaced.

    Raises:
        ConfigError: If it is something else.
    """
    path = folder / STUDY_FILE
    study = find_json(path, error=ConfigError, remedy="move it away, or choose another folder with --out")
    if study is not None and not {"schema", "name", "rows", "columns", "cells"} <= set(study):
        raise ConfigError(f"{path} was not written by cleft; move it away, or choose another folder with --out")


def read_study(folder: Path) -> StudyResults:
    """Reads a study and the results that it names.

    Raises:
        DataError: If there is no study, its file is damaged or contradicts itself, or results under one heading were
            measured on different splits or images.
    """
    path = folder / STUDY_FILE
    text = read_limited(
        path,
        error=partial(DataError, reason="not-a-study"),
        remedy="give the folder of a study, or run folders",
    )
    study = from_json(text, Study, where=STUDY_FILE, remedy="run cleft reproduce again")
    _check_names(study)
    grid = StudyResults(study=study, cells={(cell.row, cell.column): _fill(cell, folder) for cell in study.cells})
    for column in study.columns:
        _check_heading(column, list(grid.seeds(column)))
    return grid


def _check_names(study: Study) -> None:
    rows, columns = ([line.key for line in lines] for lines in (study.rows, study.columns))
    places = [(cell.row, cell.column) for cell in study.cells]
    twice = [name for names in (rows, columns) for name in names if names.count(name) > 1]
    twice += [f"{row}, {column}" for row, column in places if places.count((row, column)) > 1]
    strange = [(row, column) for row, column in places if row not in rows or column not in columns]
    if twice or strange:
        fault = f"names {twice[0]!r} twice" if twice else f"has a cell {strange[0]!r} without its row or column"
        raise DataError(f"{STUDY_FILE} {fault}; run cleft reproduce again", reason="schema")


def _check_heading(column: StudyLine, seeds: Sequence[SeedResult]) -> None:
    """Results under one heading must have been asked of the same split and images."""
    for name, what in (("split_digest", "splits"), ("ids_digest", "images")):
        first: dict[str, str] = {}
        for seed in seeds:
            first.setdefault(getattr(seed.evaluation, name), seed.file)
        if len(first) > 1:
            (one, mine), (two, theirs) = list(first.items())[:2]
            raise DataError(
                f"results under the heading {column.label!r} were measured on different {what}: {mine} on {one}, "
                f"{theirs} on {two}; evaluate the runs again on the same split, or keep them in two studies",
                reason="mixed-splits",
            )


def _fill(cell: StudyCell, folder: Path) -> CellResults:
    seeds: list[SeedResult] = []
    problems: list[str] = []
    for file in cell.results:
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ":" in path.parts[0]:
            problems.append("a result file is named by its place on another machine")
            continue
        try:
            text = read_limited(folder / path, where=str(path))
            seeds.append(SeedResult(file=str(path), evaluation=from_json(text, Evaluation, where=path.name)))
        except CleftError as error:
            problems.append(str(error))
    return CellResults(cell=cell, seeds=seeds, problems=problems)


def _number(filled: CellResults, metric: str) -> MetricSummary:
    reasons = list(filled.problems)
    if filled.cell.state != "done":
        state = STATE_NAMES.get(filled.cell.state, filled.cell.state)
        reasons.append(": ".join(dict.fromkeys(filter(None, (state, filled.cell.reason)))))
    kept: list[tuple[SeedResult, Result]] = []
    for seed in filled.seeds:
        result = next((each for each in seed.evaluation.results if each.metric == metric), None)
        if result is None:
            reasons.append("the result file does not hold this number")
            continue
        hidden = is_suppressed(result, seed.evaluation)
        if hidden or result.reason or result.value is None:
            unsaid = "not measured, and the result file does not say why" if result.value is None else None
            reasons.append(TOO_FEW if hidden else result.reason or unsaid or "")
        if result.value is not None and not hidden:
            kept.append((seed, result))
    named = len(filled.seeds) + len(filled.problems)
    remarks = list(dict.fromkeys(filter(None, reasons)))
    if not kept:
        return MetricSummary(value=None, reason="; ".join(remarks) or "no result file is named")
    if len(kept) < named:
        remarks.insert(0, f"{len(kept)} of {named} seeds")
    values = [result.value for _, result in kept if result.value is not None]
    several = len({seed.evaluation.checkpoint for seed, _ in kept}) > 1
    if len(values) > 1 and not several:
        remarks.append("every seed ended in the same weights: no spread")
    return MetricSummary(
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if several else None,
        results=kept,
        reason="; ".join(remarks) or None,
    )


FACT_NAMES = {
    "moving": "Trainable parameters",
    "moving_text": "of these, text tower",
    "frozen": "Frozen parameters",
    "seconds": "Training, seconds",
    "length": "Context length",
    "fraction": "Share of the patients",
}


class TableCell(NamedTuple):
    """A cell of the page's table: ours and the paper's."""

    measured: str
    """Empty where neither was planned."""
    href: str
    """The result file; the lines of all seeds where there are several."""
    spread: str
    title: str
    note: str
    paper: str
    paper_title: str
    state: str


class TableRow(NamedTuple):
    """One row of the page's table."""

    kind: str
    label: str
    series: int
    cells: Sequence[TableCell]
    group: str = ""
    """What stands above it and those like it."""
    note: str = ""
    """Letter of the footnote that says where its model comes from."""


class DifferenceRow(NamedTuple):
    """One row of the table of differences."""

    label: str
    group: str
    cells: Sequence[DifferenceCell]


class DifferenceCell(NamedTuple):
    """Difference of a row from the reference: value, interval, p-value as it is and corrected."""

    difference: str
    interval: str
    p_value: str
    significant: bool
    """Whether the corrected p-value is at most `LEVEL`."""


class SeedRow(NamedTuple):
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


def table_rows(grid: StudyResults, notes: Footnotes) -> list[TableRow]:
    """Rows, then floors; reasons become footnotes."""
    places = [(column, metric) for column in grid.study.columns for metric in column.metrics]
    lines: list[TableRow] = []
    for index, row in enumerate(grid.study.rows):
        letter = notes.letter(_provenance(grid, row))
        told = [_place(grid, row, column, metric, notes) for column, metric in places]
        lines.append(TableRow("model", row.label, index, told, _band(row), letter))
    for rule, name in BASELINES.items():
        numbers = [grid.baseline(rule, column, metric) for column, metric in places]
        if any(numbers):
            told = [_floor(metric, number, notes) for (_, metric), number in zip(places, numbers, strict=True)]
            lines.append(TableRow("floor", name, 0, told, "Floors: what rules reach on the same images"))
    return lines


def _place(grid: StudyResults, row: StudyLine, column: StudyLine, metric: str, notes: Footnotes) -> TableCell:
    number = grid.summary(row, column, metric)
    paper = quoted(grid.study.name, row.key, column.key, metric)
    filled = grid.cells.get((row.key, column.key))
    state = "done" if number.value is not None else "absent" if filled is None else filled.cell.state
    href = ""
    if len(number.results) == 1:
        href = _link(number.results[0][0])
    elif number.results:
        href = f"#{_anchor(grid, row, column, metric)}"
    elif filled is not None and filled.seeds:
        href = _link(filled.seeds[0])
    return TableCell(
        measured="–" if number.value is None else format_number(metric, number.value),
        href=href,
        spread=_spread(metric, number),
        title=_told(metric, number),
        note=notes.letter(number.reason),
        paper=paper.printed + paper.marks if paper else "",
        paper_title="; ".join(paper.notes) if paper else "",
        state=state,
    )


def _provenance(grid: StudyResults, row: StudyLine) -> str:
    """Where a model comes from that was given, and what its results say of patients it may know."""
    known: dict[str, list[str]] = {}
    for column in grid.study.columns:
        filled = grid.cells.get((row.key, column.key))
        for note in dict.fromkeys(
            note.rstrip(".")
            for seed in (filled.seeds if filled is not None and row.origin else ())
            for note in seed.evaluation.notes
            if "were trained on" in note or "was trained on" in note
        ):
            known.setdefault(note, []).append(column.label)
    asked = sum(cell.row == row.key and bool(cell.results) for cell in grid.study.cells)
    told = [note if len(where) == asked else f"{' and '.join(where)}: {note}" for note, where in known.items()]
    return ". ".join(filter(None, [redact("origin", row.origin) if row.origin else "", *told]))


def _spread(metric: str, number: MetricSummary) -> str:
    if number.value is None:
        return ""
    if number.spread is not None:
        return f"± {format_number(metric, number.spread)}"
    return (
        "" if number.interval_range is None else "–".join(format_number(metric, end) for end in number.interval_range)
    )


def _told(metric: str, number: MetricSummary) -> str:
    """Each seed's number with its interval, for the pointer."""
    if number.value is None:
        return number.reason or ""
    parts = [
        f"{format_number(metric, result.value)}"
        + (f" [{'–'.join(format_number(metric, end) for end in result.interval)}]" if result.interval else "")
        for _, result in number.results
        if result.value is not None
    ]
    count = "one seed" if len(parts) == 1 else f"{len(parts)} seeds"
    return f"{count}: {', '.join(parts)}"


def _floor(metric: str, number: MetricSummary | None, notes: Footnotes) -> TableCell:
    none = number is None or number.value is None
    text = "" if number is None else "–" if number.value is None else format_number(metric, number.value)
    href = _link(number.results[0][0]) if number is not None and not none else ""
    return TableCell(text, href, "", "", notes.letter(number.reason if number else None), "", "", "floor")


def _link(seed: SeedResult) -> str:
    return quote(seed.file)


def _anchor(grid: StudyResults, row: StudyLine, column: StudyLine, metric: str) -> str:
    study = grid.study
    return f"n-{study.rows.index(row)}-{study.columns.index(column)}-{column.metrics.index(metric)}"


def corrected_p_values(grid: StudyResults) -> tuple[dict[tuple[str, str, str], float], int]:
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


def difference_table(grid: StudyResults) -> list[DifferenceRow]:
    """Every row that was held against the reference of the study."""
    corrected, _ = corrected_p_values(grid)
    told: list[DifferenceRow] = []
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
            told.append(DifferenceRow(row.label, _band(row), places))
    return told


def _change(metric: str, found: Sequence[Difference], corrected: float | None) -> DifferenceCell:
    each = next((each for each in found if each.metric == metric), None)
    if each is None or each.difference is None:
        return DifferenceCell("–", "", "", significant=False)
    if each.interval is None:
        return DifferenceCell(format_difference(metric, each.difference), "", "", significant=False)
    ends = " ".join(format_difference(metric, end) for end in each.interval)
    p_value = "" if each.p_value is None else f"p {each.p_value:.3f}"
    if corrected is not None:
        p_value += f", corrected {corrected:.3f}"
    return DifferenceCell(
        format_difference(metric, each.difference),
        ends,
        p_value,
        significant=corrected is not None and corrected <= LEVEL,
    )


def _band(row: StudyLine) -> str:
    return row.heading[:1].upper() + row.heading[1:]


def seed_rows(grid: StudyResults, column: StudyLine) -> list[SeedRow]:
    """What the means under a heading are taken over."""
    found: list[SeedRow] = []
    for row in grid.study.rows:
        for metric in column.metrics:
            for place, (seed, result) in enumerate(grid.summary(row, column, metric).results):
                interval = (
                    "–".join(format_number(metric, end) for end in result.interval)
                    if result.interval
                    else "no interval"
                )
                found.append(
                    SeedRow(
                        row=row.label,
                        metric=SHORT_METRIC_NAMES.get(metric, metric),
                        seed=_seed(row, seed, place),
                        value=format_number(metric, result.value or 0.0),
                        interval=interval,
                        images=result.images,
                        patients=result.patients,
                        file=seed.file,
                        href=_link(seed),
                        anchor=_anchor(grid, row, column, metric) if place == 0 else "",
                    )
                )
    return found


def _seed(row: StudyLine, seed: SeedResult, place: int) -> str:
    if seed.evaluation.protocol:
        return str(seed.evaluation.training_seed)
    return "–" if row.origin else str(place + 1)


def parameter_table(study: Study) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """What is known of the rows besides their results: weights, cost, lengths; None where nothing is."""
    names = list(dict.fromkeys(name for row in study.rows for name in row.facts))
    if not names:
        return None
    heads = [FACT_NAMES.get(name, name.replace("_", " ").capitalize()) for name in names]
    told = [row for row in study.rows if row.facts]
    return heads, [(row.label, [_fact(name, row.facts.get(name)) for name in names]) for row in told]


def _fact(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "fraction":
        return f"{100 * value:g} %"
    if value >= 10_000 and name != "seconds":
        return format_parameters(value)
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.3g}"
