"""The table of a study: each cell with its result files, mean and spread over seeds, next to the paper's number.

All results of one column were measured on the same split and the same images; otherwise no table is written.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from cleft.errors import CleftError, ConfigError, DataError
from cleft.files import read_limited
from cleft.privacy import redact
from cleft.report.html import (
    SHORT_METRIC_NAMES,
    TOO_FEW,
    Footnotes,
    format_parameters,
    format_table_difference,
    format_table_value,
    is_suppressed,
)
from cleft.report.paper import quoted
from cleft.report.tables import BASELINES, find_result
from cleft.results import LEVEL, Difference, Evaluation, Result, Study, StudyCell, StudyLine, from_json, holm
from cleft.strict_json import find_json


class ColumnHeader(NamedTuple):
    """A header that spans several columns."""

    label: str
    span: int


def column_headers(columns: Sequence[StudyLine]) -> list[list[ColumnHeader]]:
    """Return the header rows above the metrics: datasets and tasks where labels have both, else labels alone."""
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
    """Split a column label into dataset and task.

    Example:
        >>> _parts("CheXpert-5x200, zero-shot"), _parts("Zero-shot")
        (('CheXpert-5x200', 'zero-shot'), ('', 'Zero-shot'))
    """
    group, _, task = label.rpartition(", ")
    return group, task


def column_borders(columns: Sequence[StudyLine]) -> list[str]:
    """Return the CSS class of each metric column: start of a dataset (`group`), of a task (`task`), or none."""
    borders: list[str] = []
    last = ""
    for column in columns:
        group = _parts(column.label)[0]
        for place, _ in enumerate(column.metrics):
            borders.append("" if place else "group" if group != last or not borders else "task")
        last = group
    return borders


STUDY_FILE = "study.json"
STATE_NAMES = {
    "planned": "not run yet",
    "missing": "missing data or weights",
    "failed": "failed",
    "impossible": "not applicable",
}
"""Reason printed for a cell without a result; its own reason follows."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One result file of a cell."""

    file: str
    """Relative to the study's folder, with slashes."""
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class CellResults:
    """A cell with the contents of its result files."""

    cell: StudyCell
    seeds: Sequence[SeedResult]
    problems: Sequence[str] = ()
    """Why some of its result files could not be read."""


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric of one cell, over seeds."""

    value: float | None
    """Mean over seeds."""
    spread: float | None = None
    """Sample standard deviation over seeds; None for fewer than two."""
    results: Sequence[tuple[SeedResult, Result]] = ()
    """Results that the mean is taken over."""
    reason: str | None = None
    """Why there is no value, or what it leaves out."""

    @property
    def interval_range(self) -> tuple[float, float] | None:
        """Return lowest and highest limit of the seeds' intervals; None if a seed has no interval."""
        intervals = [result.interval for _, result in self.results if result.interval is not None]
        if not intervals or len(intervals) < len(self.results):
            return None
        return min(low for low, _ in intervals), max(high for _, high in intervals)


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study with its results, by row and column."""

    study: Study
    cells: Mapping[tuple[str, str], CellResults]

    def summary(self, row: StudyLine, column: StudyLine, metric: str) -> MetricSummary:
        """Return the mean of a metric over the seeds of a cell, or why there is none."""
        cell = self.cells.get((row.key, column.key))
        return MetricSummary(value=None, reason="not part of this study") if cell is None else _summarise(cell, metric)

    def baseline(self, rule: str, column: StudyLine, metric: str) -> MetricSummary | None:
        """Return a baseline on the images of a column; None if no result has it."""
        name = f"{rule}/{metric}"
        for seed in self.seeds(column):
            result = find_result(seed.evaluation.baselines, name)
            if result is not None:
                value, reason = (
                    (None, TOO_FEW) if is_suppressed(result, seed.evaluation) else (result.value, result.reason)
                )
                return MetricSummary(value=value, results=[(seed, result)], reason=reason)
        return None

    def seeds(self, column: StudyLine) -> Iterator[SeedResult]:
        """Iterate over the results of a column, from the first row."""
        for row in self.study.rows:
            cell = self.cells.get((row.key, column.key))
            yield from cell.seeds if cell is not None else ()

    def counts(self) -> dict[str, int]:
        """Count cells by state; `done` if results were read."""
        states = [
            ("done" if cell.seeds else "unreadable") if cell.cell.state == "done" else cell.cell.state
            for cell in self.cells.values()
        ]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def check_study_file(folder: Path) -> None:
    """Raise an error if a folder has a `study.json` that cleft did not write and would replace.

    Raises:
        ConfigError: If it has.
    """
    path = folder / STUDY_FILE
    study = find_json(path, error=ConfigError, remedy="move it away, or choose another folder with --out")
    if study is not None and not {"schema", "name", "rows", "columns", "cells"} <= set(study):
        raise ConfigError(f"{path} was not written by cleft; move it away, or choose another folder with --out")


def read_study(folder: Path) -> StudyResults:
    """Read a study and its result files.

    Raises:
        DataError: If there is no study, its file is damaged or inconsistent, or the results of a column were measured
            on different splits or images.
    """
    path = folder / STUDY_FILE
    text = read_limited(
        path,
        error=partial(DataError, reason="not-a-study"),
        remedy="give the folder of a study, or run folders",
    )
    study = from_json(text, Study, where=STUDY_FILE, remedy="run cleft reproduce again")
    _check_names(study)
    study = replace(study, rows=tuple(_current_facts(row) for row in study.rows))
    results = StudyResults(
        study=study, cells={(cell.row, cell.column): _read_cell(cell, folder) for cell in study.cells}
    )
    for column in study.columns:
        _check_one_split(column, list(results.seeds(column)))
    return results


_FORMER_FACTS = {"moving": "trainable", "moving_text": "trainable_text"}


def _current_facts(row: StudyLine) -> StudyLine:
    """Rename the facts of a row that an earlier version wrote."""
    return replace(row, facts={_FORMER_FACTS.get(name, name): value for name, value in row.facts.items()})


def _check_names(study: Study) -> None:
    rows, columns = ([line.key for line in lines] for lines in (study.rows, study.columns))
    positions = [(cell.row, cell.column) for cell in study.cells]
    twice = [name for names in (rows, columns) for name in names if names.count(name) > 1]
    twice += [f"{row}, {column}" for row, column in positions if positions.count((row, column)) > 1]
    unknown = [(row, column) for row, column in positions if row not in rows or column not in columns]
    if twice or unknown:
        fault = f"names {twice[0]!r} twice" if twice else f"has a cell {unknown[0]!r} without its row or column"
        raise DataError(f"{STUDY_FILE} {fault}; run cleft reproduce again", reason="schema")


def _check_one_split(column: StudyLine, seeds: Sequence[SeedResult]) -> None:
    """Raise an error if the results of a column are of different splits or images."""
    for name, what in (("split_digest", "splits"), ("ids_digest", "images")):
        first: dict[str, str] = {}
        for seed in seeds:
            first.setdefault(getattr(seed.evaluation, name), seed.file)
        if len(first) > 1:
            (one, mine), (two, theirs) = list(first.items())[:2]
            raise DataError(
                f"results of column {column.label!r} were measured on different {what}: {mine} on {one}, "
                f"{theirs} on {two}; evaluate the runs again on the same split, or keep them in two studies",
                reason="mixed-splits",
            )


def _read_cell(cell: StudyCell, folder: Path) -> CellResults:
    seeds: list[SeedResult] = []
    problems: list[str] = []
    for file in cell.results:
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ":" in path.parts[0]:
            problems.append("a result file has an absolute path")
            continue
        try:
            text = read_limited(folder / path, where=str(path))
            seeds.append(SeedResult(file=str(path), evaluation=from_json(text, Evaluation, where=path.name)))
        except CleftError as error:
            problems.append(str(error))
    return CellResults(cell=cell, seeds=seeds, problems=problems)


def _summarise(cell: CellResults, metric: str) -> MetricSummary:
    reasons = list(cell.problems)
    if cell.cell.state != "done":
        state = STATE_NAMES.get(cell.cell.state, cell.cell.state)
        reasons.append(": ".join(dict.fromkeys(filter(None, (state, cell.cell.reason)))))
    kept: list[tuple[SeedResult, Result]] = []
    for seed in cell.seeds:
        result = find_result(seed.evaluation.results, metric)
        if result is None:
            reasons.append("not in the result file")
            continue
        hidden = is_suppressed(result, seed.evaluation)
        if hidden or result.reason or result.value is None:
            no_reason = "not measured; the result file gives no reason" if result.value is None else None
            reasons.append(TOO_FEW if hidden else result.reason or no_reason or "")
        if result.value is not None and not hidden:
            kept.append((seed, result))
    files = len(cell.seeds) + len(cell.problems)
    remarks = list(dict.fromkeys(filter(None, reasons)))
    if not kept:
        return MetricSummary(value=None, reason="; ".join(remarks) or "no result file")
    if len(kept) < files:
        remarks.insert(0, f"{len(kept)} of {files} seeds")
    values = [result.value for _, result in kept if result.value is not None]
    several = len({seed.evaluation.checkpoint for seed, _ in kept}) > 1
    if len(values) > 1 and not several:
        remarks.append("all seeds have the same weights: no standard deviation")
    return MetricSummary(
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if several else None,
        results=kept,
        reason="; ".join(remarks) or None,
    )


FACT_NAMES = {
    "trainable": "Trainable parameters",
    "trainable_text": "of these, text encoder",
    "frozen": "Frozen parameters",
    "seconds": "Training time, seconds",
    "length": "Context length",
    "fraction": "Share of training patients",
}


class TableCell(NamedTuple):
    """A cell of the study table: measured value and the paper's."""

    measured: str
    """Empty if the cell is not part of the study."""
    href: str
    """Link to the result file, or to the rows of all seeds if there are several."""
    spread: str
    title: str
    note: str
    paper: str
    paper_title: str
    state: str


class TableRow(NamedTuple):
    """One row of the study table."""

    kind: str
    label: str
    series: int
    cells: Sequence[TableCell]
    group: str = ""
    """Heading above this and similar rows."""
    note: str = ""
    """Letter of the footnote on the origin of its model."""


class DifferenceRow(NamedTuple):
    """One row of the table of differences."""

    label: str
    group: str
    cells: Sequence[DifferenceCell]


class DifferenceCell(NamedTuple):
    """Difference of a row from the reference: value, interval, p-value and corrected p-value."""

    difference: str
    interval: str
    p_value: str
    significant: bool
    """Whether the corrected p-value is at most `LEVEL`."""


class SeedRow(NamedTuple):
    """Result of one seed, with its file."""

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


def table_rows(study_results: StudyResults, notes: Footnotes) -> list[TableRow]:
    """Return the rows of the study table: models, then baselines. Reasons become footnotes."""
    columns = [(column, metric) for column in study_results.study.columns for metric in column.metrics]
    lines: list[TableRow] = []
    for index, row in enumerate(study_results.study.rows):
        letter = notes.letter(_provenance(study_results, row))
        cells = [_table_cell(study_results, row, column, metric, notes) for column, metric in columns]
        lines.append(TableRow("model", row.label, index, cells, _group(row), letter))
    for rule, name in BASELINES.items():
        numbers = [study_results.baseline(rule, column, metric) for column, metric in columns]
        if any(numbers):
            cells = [
                _baseline_cell(metric, number, notes) for (_, metric), number in zip(columns, numbers, strict=True)
            ]
            lines.append(TableRow("baseline", name, 0, cells, "Baselines without a model, on the same images"))
    return lines


def _table_cell(
    study_results: StudyResults, row: StudyLine, column: StudyLine, metric: str, notes: Footnotes
) -> TableCell:
    number = study_results.summary(row, column, metric)
    paper = quoted(study_results.study.name, row.key, column.key, metric)
    cell = study_results.cells.get((row.key, column.key))
    state = "done" if number.value is not None else "absent" if cell is None else cell.cell.state
    href = ""
    if len(number.results) == 1:
        href = _link(number.results[0][0])
    elif number.results:
        href = f"#{_anchor(study_results, row, column, metric)}"
    elif cell is not None and cell.seeds:
        href = _link(cell.seeds[0])
    return TableCell(
        measured="–" if number.value is None else format_table_value(metric, number.value),
        href=href,
        spread=_spread(metric, number),
        title=_tooltip(metric, number),
        note=notes.letter(number.reason),
        paper=paper.printed + paper.marks if paper else "",
        paper_title="; ".join(paper.notes) if paper else "",
        state=state,
    )


def _provenance(study_results: StudyResults, row: StudyLine) -> str:
    """Describe the origin of an imported model, and notes on test patients it may have been trained on."""
    columns_of: dict[str, list[str]] = {}
    for column in study_results.study.columns:
        cell = study_results.cells.get((row.key, column.key))
        for note in dict.fromkeys(
            note.rstrip(".")
            for seed in (cell.seeds if cell is not None and row.origin else ())
            for note in seed.evaluation.notes
            if "were trained on" in note or "was trained on" in note
        ):
            columns_of.setdefault(note, []).append(column.label)
    evaluated = sum(cell.row == row.key and bool(cell.results) for cell in study_results.study.cells)
    notes = [
        note if len(columns) == evaluated else f"{' and '.join(columns)}: {note}"
        for note, columns in columns_of.items()
    ]
    return ". ".join(filter(None, [redact("origin", row.origin) if row.origin else "", *notes]))


def _spread(metric: str, number: MetricSummary) -> str:
    if number.value is None:
        return ""
    if number.spread is not None:
        return f"± {format_table_value(metric, number.spread)}"
    return (
        ""
        if number.interval_range is None
        else "–".join(format_table_value(metric, end) for end in number.interval_range)
    )


def _tooltip(metric: str, number: MetricSummary) -> str:
    """Return the value and interval of each seed, as tooltip."""
    if number.value is None:
        return number.reason or ""
    parts = [
        f"{format_table_value(metric, result.value)}"
        + (f" [{'–'.join(format_table_value(metric, end) for end in result.interval)}]" if result.interval else "")
        for _, result in number.results
        if result.value is not None
    ]
    count = "one seed" if len(parts) == 1 else f"{len(parts)} seeds"
    return f"{count}: {', '.join(parts)}"


def _baseline_cell(metric: str, number: MetricSummary | None, notes: Footnotes) -> TableCell:
    none = number is None or number.value is None
    text = "" if number is None else "–" if number.value is None else format_table_value(metric, number.value)
    href = _link(number.results[0][0]) if number is not None and not none else ""
    return TableCell(text, href, "", "", notes.letter(number.reason if number else None), "", "", "baseline")


def _link(seed: SeedResult) -> str:
    return quote(seed.file)


def _anchor(study_results: StudyResults, row: StudyLine, column: StudyLine, metric: str) -> str:
    study = study_results.study
    return f"n-{study.rows.index(row)}-{study.columns.index(column)}-{column.metrics.index(metric)}"


def corrected_p_values(study_results: StudyResults) -> tuple[dict[tuple[str, str, str], float], int]:
    """Correct the p-values of all differences in a study table as one family.

    Returns:
        Row, column and metric to Holm-corrected p-value; and the number of comparisons.
    """
    shown = {column.key: column.metrics for column in study_results.study.columns}
    tested = {
        (cell.row, cell.column, each.metric): each.p_value
        for cell in study_results.study.cells
        for each in cell.differences
        if each.p_value is not None and each.metric in shown.get(cell.column, ())
    }
    corrected = holm(list(tested.values()))
    pairs = zip(tested, corrected.p_values, strict=True)
    return {place: p for place, p in pairs if p is not None}, corrected.family


def difference_table(study_results: StudyResults) -> list[DifferenceRow]:
    """Return the differences of every row from the reference row."""
    corrected, _ = corrected_p_values(study_results)
    rows: list[DifferenceRow] = []
    for row in study_results.study.rows:
        cells = {cell.column: cell for cell in study_results.study.cells if cell.row == row.key and cell.differences}
        differences = [
            _difference_cell(
                metric,
                cells[column.key].differences if column.key in cells else (),
                corrected.get((row.key, column.key, metric)),
            )
            for column in study_results.study.columns
            for metric in column.metrics
        ]
        if cells:
            rows.append(DifferenceRow(row.label, _group(row), differences))
    return rows


def _difference_cell(metric: str, differences: Sequence[Difference], corrected: float | None) -> DifferenceCell:
    each = next((each for each in differences if each.metric == metric), None)
    if each is None or each.difference is None:
        return DifferenceCell("–", "", "", significant=False)
    if each.interval is None:
        return DifferenceCell(format_table_difference(metric, each.difference), "", "", significant=False)
    ends = " ".join(format_table_difference(metric, end) for end in each.interval)
    p_value = "" if each.p_value is None else f"p {each.p_value:.3f}"
    if corrected is not None:
        p_value += f", corrected {corrected:.3f}"
    return DifferenceCell(
        format_table_difference(metric, each.difference),
        ends,
        p_value,
        significant=corrected is not None and corrected <= LEVEL,
    )


def _group(row: StudyLine) -> str:
    return row.heading[:1].upper() + row.heading[1:]


def seed_rows(study_results: StudyResults, column: StudyLine) -> list[SeedRow]:
    """Return the results of a column by row, metric and seed."""
    rows: list[SeedRow] = []
    for row in study_results.study.rows:
        for metric in column.metrics:
            for place, (seed, result) in enumerate(study_results.summary(row, column, metric).results):
                interval = (
                    "–".join(format_table_value(metric, end) for end in result.interval)
                    if result.interval
                    else "no interval"
                )
                rows.append(
                    SeedRow(
                        row=row.label,
                        metric=SHORT_METRIC_NAMES.get(metric, metric),
                        seed=_seed(row, seed, place),
                        value=format_table_value(metric, result.value or 0.0),
                        interval=interval,
                        images=result.images,
                        patients=result.patients,
                        file=seed.file,
                        href=_link(seed),
                        anchor=_anchor(study_results, row, column, metric) if place == 0 else "",
                    )
                )
    return rows


def _seed(row: StudyLine, seed: SeedResult, place: int) -> str:
    if seed.evaluation.protocol:
        return str(seed.evaluation.training_seed)
    return "–" if row.origin else str(place + 1)


def parameter_table(study: Study) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Return parameters, cost and context length of the rows; None if there are none."""
    names = list(dict.fromkeys(name for row in study.rows for name in row.facts))
    if not names:
        return None
    heads = [FACT_NAMES.get(name, name.replace("_", " ").capitalize()) for name in names]
    rows = [row for row in study.rows if row.facts]
    return heads, [(row.label, [_fact(name, row.facts.get(name)) for name in names]) for row in rows]


def _fact(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "fraction":
        return f"{100 * value:g} %"
    if value >= 10_000 and name != "seconds":
        return format_parameters(value)
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.3g}"
