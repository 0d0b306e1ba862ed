"""A study on its way: what is there, what is left, and `study.json` after every answer.

A study is a folder: `study.json`, written after every cell, the page made of it, and the runs. Whatever is in it when
the process ends, the same command goes on from there.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cleft.correction import resamples_for
from cleft.errors import ConfigError, DataError, NumericsError, ResourceError
from cleft.evaluation.compare import compare_seeds
from cleft.evaluation.kept import kept_beside
from cleft.evaluation.scoring import Draws
from cleft.files import write_whole
from cleft.grammar import count, share, verb
from cleft.identity import file_key
from cleft.report.study_table import FILE
from cleft.results import Difference, Study, StudyCell, StudyLine, to_json
from cleft.studies.costs import Times, counted, told_cost
from cleft.studies.doing import check_question, do
from cleft.studies.facts import row_facts
from cleft.studies.found import check_settings, find_answer, glance, is_done, settle
from cleft.studies.plans import Plan
from cleft.studies.running import Do, run_steps
from cleft.studies.steps import KINDS, Given, Step, Work, lay_out
from cleft.studies.typed import unused_words

log = logging.getLogger(__name__)

Cell = tuple[str, str, str]
"""Plan, row and column."""


class Ending(NamedTuple):
    """What a study ended in."""

    studies: list[Path]
    """Folders, each with its `study.json`."""
    failures: list[str]
    """One sentence for each step that failed by itself."""
    code: int
    """Exit code: 0; 5 where a number was not finite; 1 where anything else failed."""


@dataclass(kw_only=True)
class Reproduction:
    """Some plans, what is there of them, and what is left.

    Args:
        plans: Each with the folder of its `study.json`.
        given: Data, settings, seeds, folder of the runs.
        only: Pattern of rows, or of rows and columns as `row/column`; None for all.
        command: What was typed, without folders.
        lacking_weights: Model that cannot be had, to why.

    Raises:
        ConfigError: If a preset or setting is unknown, a pattern fits nothing, or a folder holds other runs.
        DataError: If data cannot be asked what a column asks, or a column would mix two splits.
    """

    plans: Sequence[tuple[Plan, Path]]
    given: Given
    only: str | None = None
    command: str = ""
    lacking_weights: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.work: Work = lay_out([plan for plan, _ in self.plans], self.given, self.lacking_weights)
        rows = [row for plan, _ in self.plans for row in plan.rows]
        self._unused = unused_words(rows, self.given, self.work.steps.values())
        for step in self.work.steps.values():
            check_settings(step)
        self.times = Times(self.given.runs)
        self._answers = {name: find_answer(step) for name, step in self._questions().items()}
        self._failures: dict[str, str] = {}
        self._facts: dict[str, dict[str, float]] = {}
        """By all that a row is: tables share most of their rows."""
        self.left = self._left()
        for step in self._distinct_questions():
            check_question(step)
        self._check_headings()

    def lines(self) -> list[str]:
        """The plan in words: each cell, what is missing, what is left and what that costs."""
        report: list[str] = []
        for plan, _ in self.plans:
            report.append(f"{plan.title} ({plan.scale}); {count(self.given.seeds, 'seed')}")
            cells = [(plan.name, row.key, column.key) for row in plan.rows for column in plan.columns]
            wanted = [cell for cell in cells if self._is_wanted(cell)]
            there = [cell for cell in wanted if cell in self.work.cells]
            width = max((len(row) for _, row, _ in there), default=0)
            report += [self._cell_line(cell, width) for cell in there]
            reasons: dict[str, list[str]] = {}
            for cell in wanted:
                if cell not in self.work.cells:
                    reasons.setdefault(": ".join(self.work.lacking[cell]), []).append(cell[1])
            report += [
                f"  {reason}: {count(len(rows), 'cell')} ({', '.join(dict.fromkeys(rows))})"
                for reason, rows in reasons.items()
            ]
            if len(wanted) < len(cells):
                report.append(f"  left out by --only: {count(len(cells) - len(wanted), 'cell')}")
        report += self._unused
        left = list(self.left.values())
        report.append(f"to do: {counted(left, KINDS) or 'nothing'}; {told_cost(left, self.times)}")
        return report

    def run(self, *, jobs: int = 1, work: Do = do) -> Ending:
        """Runs what is left, and writes every study after each answer.

        Raises:
            DataError: If results of two splits would stand under one heading.
            Interrupted, Terminated, KeyboardInterrupt: If a signal arrived; the same command resumes.
        """
        self.write()
        if not self.left:
            return Ending([folder for _, folder in self.plans], [], 0)
        for step in self.work.steps.values():
            settle(step)
        codes: list[int] = []
        own: list[str] = []
        fresh = {name for name, step in self.left.items() if not (step.folder / "config.yaml").is_file()}
        for outcome in run_steps(list(self.left.values()), work, jobs=jobs):
            name = outcome.step.name
            if outcome.failure is not None:
                self._failures[name] = outcome.failure
                if outcome.failure not in own:
                    own.append(outcome.failure)
                    log.error("failed: %s", outcome.failure)
                codes.append(outcome.code)
            else:
                if name in fresh or name in self._answers:
                    self.times.add(outcome.step, outcome.seconds)
                if name in self._answers:
                    self._answers[name] = outcome.path
            if outcome.failure is not None or name in self._answers:
                self._check_headings()
                self.write()
        self._facts.clear()  # of what was learned, more is known now: the tokens whose rows move, a new language model
        self.write()
        code = 0 if not codes else NumericsError.exit_code if NumericsError.exit_code in codes else 1
        return Ending([folder for _, folder in self.plans], own, code)

    def write(self) -> None:
        """Writes `study.json` of every plan, whole.

        Raises:
            ResourceError: If the disk is full or cannot be written.
        """
        for plan, folder in self.plans:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / FILE, to_json(self.study(plan, folder)).encode(), mode=0o644)
            except OSError as error:
                raise ResourceError(
                    f"cannot write {folder / FILE} ({error.strerror}); make room on the disk, or choose "
                    f"another folder with --out"
                ) from error

    def study(self, plan: Plan, folder: Path) -> Study:
        """A plan and what became of its cells."""
        return Study(
            name=plan.name,
            title=plan.title,
            scale=plan.scale,
            command=self.command,
            rows=tuple(
                StudyLine(
                    key=row.key,
                    label=row.label,
                    heading=row.heading,
                    facts=self._row_facts(plan, row.key),
                    origin="" if row.model is None else row.model.origin,
                )
                for row in plan.rows
            ),
            columns=tuple(StudyLine(key=each.key, label=each.label, metrics=each.metrics) for each in plan.columns),
            cells=tuple(
                self._cell(plan, (plan.name, row.key, each.key), folder) for row in plan.rows for each in plan.columns
            ),
            notes=plan.notes,
            reference=plan.reference,
        )

    def _cell(self, plan: Plan, cell: Cell, folder: Path) -> StudyCell:
        _, row, column = cell
        if cell not in self.work.cells:
            state, reason = self.work.lacking[cell]
            return StudyCell(row=row, column=column, state=state, reason=reason)
        names = self.work.cells[cell]
        found = self._found(cell)
        files = tuple(_relative(path, folder) for path in found)
        failures = [self._failures[name] for name in names if name in self._failures]
        if failures:
            return StudyCell(row=row, column=column, state="failed", results=files, reason=failures[0])
        if len(found) == len(names):
            held = self._held(plan, cell, (plan.name, plan.reference, column))
            return StudyCell(row=row, column=column, state="done", results=files, differences=held)
        reason = (
            f"{share(len(found), len(names), 'seed')} {verb(len(found), 'is', 'are')} done" if found else "not run yet"
        )
        return StudyCell(row=row, column=column, state="planned", results=files, reason=reason)

    def _held(self, plan: Plan, cell: Cell, reference: Cell) -> tuple[Difference, ...]:
        """A cell that is done against that of the reference; what was asked once stands against every seed."""
        found, others = self._found(cell), self._found(reference)
        if cell == reference or not others or len(others) < len(self.work.cells[reference]):
            return ()
        seeds = max(len(found), len(others))
        mine, theirs = (files * (seeds // len(files)) for files in (found, others))
        numbers = (len(plan.rows) - 1) * sum(len(each.metrics) for each in plan.columns)
        return compare_done(tuple(mine), tuple(theirs), resamples_for(numbers))

    def _found(self, cell: Cell) -> list[Path]:
        """Result files of a cell, of the seeds that are done."""
        return [path for path in map(self._answers.get, self.work.cells.get(cell, ())) if path is not None]

    def _row_facts(self, plan: Plan, key: str) -> dict[str, float]:
        row = next(row for row in plan.rows if row.key == key)
        if str(row) not in self._facts:
            self._facts[str(row)] = row_facts(row, self.given, self.work)
        facts = dict(self._facts[str(row)])
        names = {name for cell, names in self.work.cells.items() if cell[:2] == (plan.name, key) for name in names}
        seconds = [self.times.of(name) for name in self._before(names) if self.work.steps[name].kind in _TRAINING]
        if seconds and all(second is not None for second in seconds):
            facts["seconds"] = round(sum(second or 0.0 for second in seconds) / self.given.seeds, 1)
        return facts

    def _cell_line(self, cell: Cell, width: int) -> str:
        place = f"  {cell[1]:{width}} {cell[2]:26}"
        names = self.work.cells[cell]
        done = sum(self._answers[name] is not None for name in names)
        steps = [step for name, step in self.left.items() if name in self._before(names)]
        if done == len(names):
            return f"{place} done"
        return f"{place} {done} of {len(names)} done; {count(len(steps), 'step')}, {told_cost(steps, self.times)}"

    def _questions(self) -> dict[str, Step]:
        names = {name for names in self.work.cells.values() for name in names}
        return {name: step for name, step in self.work.steps.items() if name in names}

    def _distinct_questions(self) -> list[Step]:
        """One step for each subject that is still to be asked about, and each set of classes."""
        left = [step for name, step in self.left.items() if name in self._answers]
        return list({(step.subject, step.settings.data.dataset, step.settings.classes): step for step in left}.values())

    def _left(self) -> dict[str, Step]:
        """What must be run for the cells that were asked for, in order; steps behind what is done are not."""
        wanted = [
            name
            for cell, names in self.work.cells.items()
            if self._is_wanted(cell)
            for name in names
            if self._answers[name] is None
        ]
        if self.only is not None and not any(self._is_wanted(cell) for cell in [*self.work.cells, *self.work.lacking]):
            rows = ", ".join(dict.fromkeys(row.key for plan, _ in self.plans for row in plan.rows))
            raise ConfigError(
                f"--only {self.only!r} fits no row and no cell such as {self._example()}; rows are {rows}"
            )
        needed: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name not in needed and (name in self._answers or not is_done(self.work.steps[name])):
                needed.add(name)
                wanted += self.work.steps[name].needs
        return {name: step for name, step in self.work.steps.items() if name in needed}

    def _is_wanted(self, cell: Cell) -> bool:
        _, row, column = cell
        return self.only is None or fnmatchcase(row, self.only) or fnmatchcase(f"{row}/{column}", self.only)

    def _example(self) -> str:
        plan = self.plans[0][0]
        return f"{plan.rows[0].key}/{plan.columns[0].key}" if plan.columns else plan.rows[0].key

    def _before(self, names: Iterable[str]) -> set[str]:
        """Some steps and all that they need."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.work.steps[name].needs
        return found

    def _check_headings(self) -> None:
        """Results of two splits, or of other images, must not stand under one heading."""
        for plan, _ in self.plans:
            for column in plan.columns:
                found = [path for row in plan.rows for path in self._found((plan.name, row.key, column.key))]
                _check_one_split(column.label, found)


_TRAINING = ("pretrain", "context")


def _check_one_split(heading: str, paths: Sequence[Path]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for path in paths:
        asked = glance(path)
        seen.setdefault((asked.split_digest, asked.ids_digest), path)
    if len(seen) > 1:
        told = " and ".join(
            f"{split} (images {ids}; {'/'.join(path.parts[-5:-2])})" for (split, ids), path in list(seen.items())[:2]
        )
        raise DataError(
            f"under the heading {heading!r} results of two splits would stand: {told}; give the data the study was "
            f"begun with, or choose another folder with --out",
            reason="mixed-splits",
        )


def compare_done(results: tuple[Path, ...], reference: tuple[Path, ...], resamples: int) -> tuple[Difference, ...]:
    """Compare results, once for each state of their files; empty where they lack single scores or do not compare."""
    files = [file for path in (*results, *reference) for file in (path, kept_beside(path)) if file.is_file()]
    return _hold_against(results, reference, resamples, tuple(map(file_key, files)))


@functools.cache
def _hold_against(
    results: tuple[Path, ...], reference: tuple[Path, ...], resamples: int, states: tuple[str, ...]
) -> tuple[Difference, ...]:
    try:
        return compare_seeds(results, reference, draws=Draws(resamples=resamples))
    except DataError as error:
        log.warning("no difference between rows: %s", error)
        return ()


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
