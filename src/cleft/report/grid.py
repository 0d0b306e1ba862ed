"""A study as it is read: each cell with its result files, each number with its mean and spread over seeds.

What stands under one heading was asked of the same split and the same images, or nothing is written at all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from cleft.codec import from_json
from cleft.errors import CleftError, ConfigError, DataError
from cleft.files import find_json, read_limited
from cleft.report.cells import TOO_FEW, small
from cleft.types import Evaluation, Result, Study, StudyCell, StudyLine

FILE = "study.json"
STATES = {
    "planned": "not run yet",
    "missing": "data or weights were not given",
    "failed": "failed",
    "impossible": "cannot be asked",
}
"""What a cell without a result says; its own reason follows."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One result file of a cell."""

    file: str
    """Relative to the study's folder, with slashes."""
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A cell and what its result files hold."""

    cell: StudyCell
    seeds: Sequence[Seed]
    problems: Sequence[str] = ()
    """Files that are named and could not be read."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One metric of one cell."""

    value: float | None
    """Mean over seeds."""
    spread: float | None = None
    """Standard deviation over seeds, with n - 1; None for fewer than two."""
    results: Sequence[tuple[Seed, Result]] = ()
    """What the mean is taken over."""
    reason: str | None = None
    """Why there is no value, or what it leaves out."""

    @property
    def reach(self) -> tuple[float, float] | None:
        """From the lowest to the highest end of the seeds' intervals; None where a seed has none."""
        intervals = [result.interval for _, result in self.results if result.interval is not None]
        if not intervals or len(intervals) < len(self.results):
            return None
        return min(low for low, _ in intervals), max(high for _, high in intervals)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A study with its results."""

    study: Study
    filled: Mapping[tuple[str, str], Filled]

    def number(self, row: StudyLine, column: StudyLine, metric: str) -> Number:
        """The mean of a metric over the seeds of a cell, or why there is none."""
        filled = self.filled.get((row.key, column.key))
        return Number(value=None, reason="not part of this study") if filled is None else _number(filled, metric)

    def floor(self, rule: str, column: StudyLine, metric: str) -> Number | None:
        """What a rule reaches on the images of a column; None where no result of it says so."""
        name = f"{rule}/{metric}"
        for seed in self.seeds(column):
            result = next((floor for floor in seed.evaluation.floors if floor.metric == name), None)
            if result is not None:
                kept, reason = (None, TOO_FEW) if small(result, seed.evaluation) else (result.value, result.reason)
                return Number(value=kept, results=[(seed, result)], reason=reason)
        return None

    def seeds(self, column: StudyLine) -> Iterator[Seed]:
        """Every result under a heading, from the top."""
        for row in self.study.rows:
            filled = self.filled.get((row.key, column.key))
            yield from filled.seeds if filled is not None else ()

    def counts(self) -> dict[str, int]:
        """Cells by state; `done` where results were read."""
        states = [
            ("done" if filled.seeds else "unreadable") if filled.cell.state == "done" else filled.cell.state
            for filled in self.filled.values()
        ]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def check_study_file(folder: Path) -> None:
    """Refuse a folder whose `study.json` is not that of a study, because it would be replaced.

    Raises:
        ConfigError: If it is something else.
    """
    path = folder / FILE
    study = find_json(path, error=ConfigError, remedy="move it away, or choose another folder with --out")
    if study is not None and not {"schema", "name", "rows", "columns", "cells"} <= set(study):
        raise ConfigError(f"{path} was not written by cleft; move it away, or choose another folder with --out")


def read_grid(folder: Path) -> Grid:
    """Reads a study and the results that it names.

    Raises:
        DataError: If there is no study, its file is damaged or contradicts itself, or results under one heading were
            measured on different splits or images.
    """
    path = folder / FILE
    text = read_limited(
        path,
        error=partial(DataError, reason="not-a-study"),
        remedy="give the folder of a study, or run folders",
    )
    study = from_json(text, Study, where=FILE, remedy="run cleft reproduce again")
    _check_names(study)
    grid = Grid(study=study, filled={(cell.row, cell.column): _fill(cell, folder) for cell in study.cells})
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
        raise DataError(f"{FILE} {fault}; run cleft reproduce again", reason="schema")


def _check_heading(column: StudyLine, seeds: Sequence[Seed]) -> None:
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


def _fill(cell: StudyCell, folder: Path) -> Filled:
    seeds: list[Seed] = []
    problems: list[str] = []
    for file in cell.results:
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ":" in path.parts[0]:
            problems.append("a result file is named by its place on another machine")
            continue
        try:
            text = read_limited(folder / path, where=str(path))
            seeds.append(Seed(file=str(path), evaluation=from_json(text, Evaluation, where=path.name)))
        except CleftError as error:
            problems.append(str(error))
    return Filled(cell=cell, seeds=seeds, problems=problems)


def _number(filled: Filled, metric: str) -> Number:
    reasons = list(filled.problems)
    if filled.cell.state != "done":
        state = STATES.get(filled.cell.state, filled.cell.state)
        reasons.append(": ".join(dict.fromkeys(filter(None, (state, filled.cell.reason)))))
    kept: list[tuple[Seed, Result]] = []
    for seed in filled.seeds:
        result = next((each for each in seed.evaluation.results if each.metric == metric), None)
        if result is None:
            reasons.append("the result file does not hold this number")
            continue
        hidden = small(result, seed.evaluation)
        if hidden or result.reason or result.value is None:
            unsaid = "not measured, and the result file does not say why" if result.value is None else None
            reasons.append(TOO_FEW if hidden else result.reason or unsaid or "")
        if result.value is not None and not hidden:
            kept.append((seed, result))
    named = len(filled.seeds) + len(filled.problems)
    remarks = list(dict.fromkeys(filter(None, reasons)))
    if not kept:
        return Number(value=None, reason="; ".join(remarks) or "no result file is named")
    if len(kept) < named:
        remarks.insert(0, f"{len(kept)} of {named} seeds")
    values = [result.value for _, result in kept if result.value is not None]
    several = len({seed.evaluation.checkpoint for seed, _ in kept}) > 1
    if len(values) > 1 and not several:
        remarks.append("every seed ended in the same weights: no spread")
    return Number(
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if several else None,
        results=kept,
        reason="; ".join(remarks) or None,
    )
