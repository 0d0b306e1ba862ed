"""From the name of a table to its page: plans, says what is missing and what it costs, runs what is left."""

from __future__ import annotations

import functools
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cleft.config import flat_settings, load_settings, overridden_keys
from cleft.config.loading import nearest
from cleft.correction import resamples_for
from cleft.data import DATASETS, data_config, split_recipe
from cleft.errors import ConfigError, DataError, NumericsError, ResourceError
from cleft.evaluation.compare import compare_seeds
from cleft.evaluation.result_files import predictions_path
from cleft.evaluation.scoring import Bootstrap
from cleft.files import file_key, write_whole
from cleft.grammar import count, share, verb
from cleft.report.study_page import check_study_outputs, write_study_page
from cleft.report.study_table import STUDY_FILE, check_study_file
from cleft.results import Difference, Study, StudyCell, StudyLine, to_json
from cleft.studies.grids import add_models, labelled_folders, read_grid
from cleft.studies.plans import PLANS, Plan, Row, Scale, paper_plan
from cleft.studies.run_step import Do, check_question, do, run_steps
from cleft.studies.status import (
    Times,
    check_settings,
    counted,
    find_answer,
    glance,
    is_done,
    lacking_weights,
    row_facts,
    settle,
    told_cost,
)
from cleft.studies.steps import KINDS, Given, Step, Work, lay_out, row_settings, words_of_row
from cleft.training.provenance import command_line

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
                write_whole(folder / STUDY_FILE, to_json(self.study(plan, folder)).encode(), mode=0o644)
            except OSError as error:
                raise ResourceError(
                    f"cannot write {folder / STUDY_FILE} ({error.strerror}); make room on the disk, or choose "
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
    files = [file for path in (*results, *reference) for file in (path, predictions_path(path)) if file.is_file()]
    return _hold_against(results, reference, resamples, tuple(map(file_key, files)))


@functools.cache
def _hold_against(
    results: tuple[Path, ...], reference: tuple[Path, ...], resamples: int, states: tuple[str, ...]
) -> tuple[Difference, ...]:
    try:
        return compare_seeds(results, reference, draws=Bootstrap(resamples=resamples))
    except DataError as error:
        log.warning("no difference between rows: %s", error)
        return ()


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def unused_words(rows: Sequence[Row], given: Given, steps: Iterable[Step]) -> list[str]:
    """Returns one line for each typed setting that some rows or some data do not use.

    Args:
        rows: Of all plans.
        given: What was typed.
        steps: Of all cells.

    Raises:
        ConfigError: If no row uses a setting, and it is not one of texts that no row reads.
    """
    typed = sorted(overridden_keys(given.words))
    if not typed:
        return []
    lines: list[str] = []
    without = {key: [row.key for row in rows if not _uses(row, given, key)] for key in typed}
    for key, names in without.items():
        of_texts = not any(key in overridden_keys(words_of_row(row, given)) for row in rows)
        if len(names) == len(rows) and not of_texts:
            raise ConfigError(f"--{key} is used by no row of this study: each sets it itself; leave it out")
        if names:
            rows_of = ", ".join(dict.fromkeys(names))
            lines.append(f"--{key} is not used by rows that set it themselves or read no texts: {rows_of}")
    return [*lines, *_on_other_data([key for key in typed if key.startswith("data.")], steps)]


def _uses(row: Row, given: Given, key: str) -> bool:
    """Whether a row's settings have the value that was typed."""
    words = words_of_row(row, given)
    if key not in overridden_keys(words):
        return False
    return flat_settings(row_settings(row, given))[key] == flat_settings(load_settings(row.preset, words))[key]


def _on_other_data(keys: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Lines about settings of the data that rows are trained on, where another dataset is read."""
    found: dict[str, None] = {}
    for step in steps:
        if step.data is None:
            continue
        own, other = step.settings.data, data_config(step.settings, step.data)
        for key in keys:
            name = key.removeprefix("data.")
            if getattr(own, name) != getattr(other, name):
                found[f"--{key} is used for {own.dataset}, not for {other.dataset} (split {split_recipe(other)})"] = (
                    None
                )
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed."""

    name: str
    """Of a study, `all`, or a grid's file."""
    data: tuple[str, ...] = ()
    """`dataset=folder`."""
    models: tuple[str, ...] = ()
    """`label=folder`: rows that are there already."""
    words: tuple[str, ...] = ()
    """Settings for every row."""
    scale: Scale = "paper"
    seeds: int = 3
    out: Path | None = None
    only: str | None = None
    jobs: int = 1

    def command(self) -> str:
        """The same in one line, without folders."""
        options = {"--out": self.out, "--scale": self.scale, "--seeds": self.seeds}
        words = [f"{name}={value}" for name, value in options.items() if value is not None]
        only = [] if self.only is None else [f"--only={self.only}"]  # its slashes are those of cells
        given = [f"--data={word}" for word in self.data] + [f"--model={word}" for word in self.models]
        typed = command_line(["cleft", "reproduce", self.name, *given, *words, *self.words])
        return " ".join([typed, *map(shlex.quote, only)])


def reproduce(
    request: Request,
    *,
    plan_only: bool = False,
    say: Callable[[str], None] = print,
    work: Do = do,
    overwrite: bool = False,
) -> Ending:
    """Plans a study, says what is missing and what it costs, runs what is left, and writes its page and tables.

    Args:
        request: What was typed.
        plan_only: Whether to stop before anything is run or written.
        say: Where the plan goes.
        work: Runs one step.
        overwrite: Whether page and tables replace files that are not earlier outputs.

    Raises:
        ConfigError: If the study, a data set, a preset or a setting is unknown, a folder holds other runs, or a model's
            label is empty or taken.
        CheckpointError: If a model that was given is none, is damaged or not finished.
        DataError: If data cannot be asked what a column asks, or results of two splits would stand under one heading.
        Interrupted, Terminated, KeyboardInterrupt: If a signal arrived; the same command resumes.
    """
    for name, number in (("--seeds", request.seeds), ("--jobs", request.jobs)):
        if number < 1:
            raise ConfigError(f"{name} {number}: give 1 or more")
    plans, out = _plans(request)
    if not plan_only:
        for plan, folder in plans:
            check_study_file(folder)
            check_study_outputs(folder, plan.name, overwrite=overwrite)
    models = labelled_folders(request.models)
    plans = [(add_models(plan, models), folder) for plan, folder in plans]
    given = Given(data=_data(request.data), words=_joined(request.words), seeds=request.seeds, runs=out / "runs")
    reproduction = Reproduction(
        plans=plans,
        given=given,
        only=request.only,
        command=request.command(),
        lacking_weights=lacking_weights([plan for plan, _ in plans], given),
    )
    for line in reproduction.lines():
        say(line)
    if plan_only:
        return Ending([], [], 0)
    ending = reproduction.run(jobs=request.jobs, work=work)
    for folder in ending.studies:
        say(f"{write_study_page(folder, overwrite=overwrite)}: open it in a browser")
    return ending


def _plans(request: Request) -> tuple[list[tuple[Plan, Path]], Path]:
    """Plans, each with its folder, and the folder of all."""
    path = Path(request.name)
    if path.suffix in (".yaml", ".yml"):
        grid = read_grid(path, scale=request.scale)
        out = request.out or Path("studies") / path.stem
        return [(grid, out)], out
    out = request.out or Path("studies") / f"{request.name}{'-tiny' * (request.scale == 'tiny')}"
    if request.name == "all":
        return [(paper_plan(name, request.scale), out / name) for name in PLANS], out
    return [(paper_plan(request.name, request.scale), out)], out


def _data(words: Sequence[str]) -> dict[str, Path]:
    """`dataset=folder` as typed.

    Raises:
        ConfigError: If a data set is unknown, named twice, or its folder is not there.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if name not in DATASETS or not folder:
            near = "" if name in DATASETS else nearest(name, list(DATASETS))
            raise ConfigError(
                f"--data {word!r} is not a data set and its folder{near}; write "
                f"{' or '.join(f'{known}=<folder>' for known in DATASETS)}"
            )
        if name in found:
            raise ConfigError(f"--data names {name} twice; give one folder")
        if not Path(folder).expanduser().exists():
            raise ConfigError(f"--data {word}: there is no folder {folder}")
        found[name] = Path(folder).expanduser()
    return found


def _joined(words: Sequence[str]) -> tuple[str, ...]:
    """`--name value` as `--name=value`, one word each.

    Raises:
        ConfigError: If a word is no setting, or one that the study decides itself.
    """
    joined: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("--") and "=" not in word and waiting:
            word = f"{word}={waiting.pop(0)}"
        name = word.partition("=")[0]
        if name in _DECIDED:
            raise ConfigError(f"{name} is decided by the study; {_DECIDED[name]}")
        joined.append(word)
    return tuple(joined)


_DECIDED = {
    "--seed": "say how many with --seeds",
    "--data.root": "give folders as --data chexpert=<folder>",
}
