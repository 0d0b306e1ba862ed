"""Reproduce a study: plan its steps, run the remaining ones, and write its page and tables.

A study is a folder with `study.json`, which is rewritten after every evaluation, the page, and the runs. If the process
is stopped, the same command resumes it.
"""

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
from cleft.data import DATASETS, data_config, split_recipe
from cleft.errors import ConfigError, DataError, NumericsError, ResourceError
from cleft.evaluation import Bootstrap
from cleft.evaluation.compare import compare_seeds
from cleft.evaluation.result_files import predictions_path
from cleft.files import file_key, write_whole
from cleft.grammar import count, share, verb
from cleft.report.study_page import check_study_outputs, write_study_page
from cleft.report.study_table import STATE_NAMES, STUDY_FILE, check_study_file
from cleft.results import Difference, Study, StudyCell, StudyLine, resamples_for, to_json
from cleft.studies.grids import add_models, parse_models, read_grid
from cleft.studies.plans import PLANS, Plan, Row, Scale, paper_plan
from cleft.studies.run_step import RunStep, check_evaluation_data, run_step, run_steps
from cleft.studies.status import (
    StepTimes,
    check_run_settings,
    count_kinds,
    describe_cost,
    find_result,
    find_unavailable_weights,
    is_done,
    read_evaluation_header,
    row_facts,
    update_paths,
)
from cleft.studies.steps import KIND_NAMES, Step, StepPlan, StudyOptions, overrides_of_row, plan_steps, row_settings
from cleft.training.provenance import command_line

log = logging.getLogger(__name__)

Cell = tuple[str, str, str]
"""Names of study, row and column."""


class StudyOutcome(NamedTuple):
    """Outcome of running studies."""

    studies: list[Path]
    """Study folders."""
    failures: list[str]
    """Messages of the steps that failed, without those that depend on them."""
    exit_code: int
    """Exit code: 0, 5 if a value was not finite, 1 for other failures."""


@dataclass(kw_only=True)
class Reproduction:
    """Studies with their finished and remaining steps.

    Args:
        plans: Studies with their folders.
        options: Data, overrides, seeds, folder of the runs.
        only: Pattern of rows, or of cells as `row/column`; None for all.
        command: Command line, without folders.
        unavailable_weights: Published models that are not available, with reasons.

    Raises:
        ConfigError: If a preset or setting is unknown, a pattern matches nothing, or a folder has other runs.
        DataError: If data do not fit a column, or a column would mix two splits.
    """

    plans: Sequence[tuple[Plan, Path]]
    options: StudyOptions
    only: str | None = None
    command: str = ""
    unavailable_weights: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.step_plan: StepPlan = plan_steps([plan for plan, _ in self.plans], self.options, self.unavailable_weights)
        rows = [row for plan, _ in self.plans for row in plan.rows]
        self._unused = unused_overrides(rows, self.options, self.step_plan.steps.values())
        for step in self.step_plan.steps.values():
            check_run_settings(step)
        self.times = StepTimes(self.options.runs)
        self._results = {name: find_result(step) for name, step in self._evaluations().items()}
        self._failures: dict[str, str] = {}
        self._facts: dict[str, dict[str, float]] = {}
        """By row: studies share most of their rows."""
        self.remaining = self._remaining()
        for step in self._distinct_evaluations():
            check_evaluation_data(step)
        self._check_columns()

    def describe(self) -> list[str]:
        """Describe the plan in lines: each cell, missing data, remaining steps and their time."""
        report: list[str] = []
        for plan, _ in self.plans:
            report.append(f"{plan.title} ({plan.scale}); {count(self.options.seeds, 'seed')}")
            cells = [(plan.name, row.key, column.key) for row in plan.rows for column in plan.columns]
            wanted = [cell for cell in cells if self._is_wanted(cell)]
            available = [cell for cell in wanted if cell in self.step_plan.cells]
            width = max((len(row) for _, row, _ in available), default=0)
            report += [self._cell_line(cell, width) for cell in available]
            reasons: dict[str, list[str]] = {}
            for cell in wanted:
                if cell not in self.step_plan.cells:
                    state, reason = self.step_plan.unavailable[cell]
                    reasons.setdefault(f"{STATE_NAMES[state]}: {reason}", []).append(cell[1])
            report += [
                f"  {reason}: {count(len(rows), 'cell')} ({', '.join(dict.fromkeys(rows))})"
                for reason, rows in reasons.items()
            ]
            if len(wanted) < len(cells):
                report.append(f"  not selected by --only: {count(len(cells) - len(wanted), 'cell')}")
        report += self._unused
        remaining = list(self.remaining.values())
        to_do = (
            f"{count_kinds(remaining, KIND_NAMES)}; {describe_cost(remaining, self.times)}" if remaining else "nothing"
        )
        return [*report, f"to do: {to_do}"]

    def run(self, *, jobs: int = 1, step_runner: RunStep = run_step) -> StudyOutcome:
        """Run the remaining steps, and write every study after each evaluation.

        Raises:
            DataError: If a column would mix results of two splits.
            Interrupted, Terminated, KeyboardInterrupt: If a signal arrived; the same command resumes.
        """
        self.write_study()
        if not self.remaining:
            return StudyOutcome([folder for _, folder in self.plans], [], 0)
        for step in self.step_plan.steps.values():
            update_paths(step)
        codes: list[int] = []
        failures: list[str] = []
        fresh = {name for name, step in self.remaining.items() if not (step.folder / "config.yaml").is_file()}
        for outcome in run_steps(list(self.remaining.values()), step_runner, jobs=jobs):
            name = outcome.step.name
            if outcome.failure is not None:
                self._failures[name] = outcome.failure
                if outcome.failure not in failures:
                    failures.append(outcome.failure)
                    log.error("failed: %s", outcome.failure)
                codes.append(outcome.code)
            else:
                if name in fresh or name in self._results:
                    self.times.add(outcome.step, outcome.seconds)
                if name in self._results:
                    self._results[name] = outcome.path
            if outcome.failure is not None or name in self._results:
                self._check_columns()
                self.write_study()
        self._facts.clear()  # parameter counts need the tokens and language models of the finished runs
        self.write_study()
        code = 0 if not codes else NumericsError.exit_code if NumericsError.exit_code in codes else 1
        return StudyOutcome([folder for _, folder in self.plans], failures, code)

    def write_study(self) -> None:
        """Write `study.json` of every study atomically.

        Raises:
            ResourceError: If the disk is full or cannot be written.
        """
        for plan, folder in self.plans:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / STUDY_FILE, to_json(self.study(plan, folder)).encode(), mode=0o644)
            except OSError as error:
                raise ResourceError(
                    f"cannot write {folder / STUDY_FILE} ({error.strerror}); free some disk space, or choose "
                    f"another folder with --out"
                ) from error

    def study(self, plan: Plan, folder: Path) -> Study:
        """Return the study with the state of its cells."""
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
        if cell not in self.step_plan.cells:
            state, reason = self.step_plan.unavailable[cell]
            return StudyCell(row=row, column=column, state=state, reason=reason)
        names = self.step_plan.cells[cell]
        paths = self._result_files(cell)
        files = tuple(_relative(path, folder) for path in paths)
        failures = [self._failures[name] for name in names if name in self._failures]
        if failures:
            return StudyCell(row=row, column=column, state="failed", results=files, reason=failures[0])
        if len(paths) == len(names):
            differences = self._differences(plan, cell, (plan.name, plan.reference, column))
            return StudyCell(row=row, column=column, state="done", results=files, differences=differences)
        reason = (
            f"{share(len(paths), len(names), 'seed')} {verb(len(paths), 'is', 'are')} done" if paths else "not run yet"
        )
        return StudyCell(row=row, column=column, state="planned", results=files, reason=reason)

    def _differences(self, plan: Plan, cell: Cell, reference: Cell) -> tuple[Difference, ...]:
        """Compare a finished cell with the reference; a single result is compared with every seed."""
        results, references = self._result_files(cell), self._result_files(reference)
        if cell == reference or not references or len(references) < len(self.step_plan.cells[reference]):
            return ()
        seeds = max(len(results), len(references))
        results, references = (files * (seeds // len(files)) for files in (results, references))
        tests = (len(plan.rows) - 1) * sum(len(each.metrics) for each in plan.columns)
        return compare_results(tuple(results), tuple(references), resamples_for(tests))

    def _result_files(self, cell: Cell) -> list[Path]:
        """Return the result files of a cell, for the finished seeds."""
        return [path for path in map(self._results.get, self.step_plan.cells.get(cell, ())) if path is not None]

    def _row_facts(self, plan: Plan, key: str) -> dict[str, float]:
        row = next(row for row in plan.rows if row.key == key)
        if str(row) not in self._facts:
            self._facts[str(row)] = row_facts(row, self.options, self.step_plan)
        facts = dict(self._facts[str(row)])
        names = {name for cell, names in self.step_plan.cells.items() if cell[:2] == (plan.name, key) for name in names}
        seconds = [
            self.times.of(name) for name in self._with_needs(names) if self.step_plan.steps[name].kind in _TRAINING
        ]
        if seconds and all(second is not None for second in seconds):
            facts["seconds"] = round(sum(second or 0.0 for second in seconds) / self.options.seeds, 1)
        return facts

    def _cell_line(self, cell: Cell, width: int) -> str:
        place = f"  {cell[1]:{width}} {cell[2]:26}"
        names = self.step_plan.cells[cell]
        done = sum(self._results[name] is not None for name in names)
        steps = [step for name, step in self.remaining.items() if name in self._with_needs(names)]
        if done == len(names):
            return f"{place} done"
        return f"{place} {done} of {len(names)} done; {count(len(steps), 'step')}, {describe_cost(steps, self.times)}"

    def _evaluations(self) -> dict[str, Step]:
        names = {name for names in self.step_plan.cells.values() for name in names}
        return {name: step for name, step in self.step_plan.steps.items() if name in names}

    def _distinct_evaluations(self) -> list[Step]:
        """Return one remaining evaluation for each benchmark and set of classes."""
        evaluations = [step for name, step in self.remaining.items() if name in self._results]
        return list(
            {(step.benchmark, step.settings.data.dataset, step.settings.classes): step for step in evaluations}.values()
        )

    def _remaining(self) -> dict[str, Step]:
        """Return the steps to run for the selected cells, in order, without those that only finished steps need."""
        wanted = [
            name
            for cell, names in self.step_plan.cells.items()
            if self._is_wanted(cell)
            for name in names
            if self._results[name] is None
        ]
        if self.only is not None and not any(
            self._is_wanted(cell) for cell in [*self.step_plan.cells, *self.step_plan.unavailable]
        ):
            rows = ", ".join(dict.fromkeys(row.key for plan, _ in self.plans for row in plan.rows))
            raise ConfigError(
                f"--only {self.only!r} matches no row or cell (such as {self._example()}); rows are {rows}"
            )
        needed: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name not in needed and (name in self._results or not is_done(self.step_plan.steps[name])):
                needed.add(name)
                wanted += self.step_plan.steps[name].needs
        return {name: step for name, step in self.step_plan.steps.items() if name in needed}

    def _is_wanted(self, cell: Cell) -> bool:
        _, row, column = cell
        return self.only is None or fnmatchcase(row, self.only) or fnmatchcase(f"{row}/{column}", self.only)

    def _example(self) -> str:
        plan = self.plans[0][0]
        return f"{plan.rows[0].key}/{plan.columns[0].key}" if plan.columns else plan.rows[0].key

    def _with_needs(self, names: Iterable[str]) -> set[str]:
        """Return some steps and everything they need."""
        steps: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in steps:
                steps.add(name)
                waiting += self.step_plan.steps[name].needs
        return steps

    def _check_columns(self) -> None:
        """Check that all results of a column have the same split and images."""
        for plan, _ in self.plans:
            for column in plan.columns:
                paths = [path for row in plan.rows for path in self._result_files((plan.name, row.key, column.key))]
                _check_one_split(column.label, paths)


_TRAINING = ("pretrain", "context")


def _check_one_split(column: str, paths: Sequence[Path]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for path in paths:
        evaluation = read_evaluation_header(path)
        seen.setdefault((evaluation.split_digest, evaluation.ids_digest), path)
    if len(seen) > 1:
        described = " and ".join(
            f"{split} (images {ids}; {'/'.join(path.parts[-5:-2])})" for (split, ids), path in list(seen.items())[:2]
        )
        raise DataError(
            f"column {column!r} would mix results of two splits: {described}; use the data the study was started with, "
            f"or choose another folder with --out",
            reason="mixed-splits",
        )


def compare_results(results: tuple[Path, ...], reference: tuple[Path, ...], resamples: int) -> tuple[Difference, ...]:
    """Compare results, once per state of their files; empty if they have no scores per image or cannot be compared."""
    files = [file for path in (*results, *reference) for file in (path, predictions_path(path)) if file.is_file()]
    return _compare_results(results, reference, resamples, tuple(map(file_key, files)))


@functools.cache
def _compare_results(
    results: tuple[Path, ...], reference: tuple[Path, ...], resamples: int, states: tuple[str, ...]
) -> tuple[Difference, ...]:
    try:
        return compare_seeds(results, reference, bootstrap=Bootstrap(resamples=resamples))
    except DataError as error:
        log.warning("rows not compared: %s", error)
        return ()


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def unused_overrides(rows: Sequence[Row], options: StudyOptions, steps: Iterable[Step]) -> list[str]:
    """Return one line for each override that some rows or datasets do not use.

    Args:
        rows: Rows of all studies.
        options: Options with the overrides.
        steps: Steps of all cells.

    Raises:
        ConfigError: If no row uses a setting because each sets it itself.
    """
    keys = sorted(overridden_keys(options.overrides))
    if not keys:
        return []
    lines: list[str] = []
    without = {key: [row.key for row in rows if not _uses(row, options, key)] for key in keys}
    for key, names in without.items():
        text_setting = not any(key in overridden_keys(overrides_of_row(row, options)) for row in rows)
        if len(names) == len(rows) and not text_setting:
            raise ConfigError(f"--{key} has no effect: every row of this study sets it itself; remove it")
        if names:
            rows_of = ", ".join(dict.fromkeys(names))
            lines.append(f"--{key} has no effect on rows that set it themselves or have no text encoder: {rows_of}")
    return [*lines, *_unused_on_other_data([key for key in keys if key.startswith("data.")], steps)]


def _uses(row: Row, options: StudyOptions, key: str) -> bool:
    """Whether the settings of a row have the overriding value."""
    overrides = overrides_of_row(row, options)
    if key not in overridden_keys(overrides):
        return False
    return flat_settings(row_settings(row, options))[key] == flat_settings(load_settings(row.preset, overrides))[key]


def _unused_on_other_data(keys: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Return lines on data settings that apply to the training dataset but not to another one."""
    lines: dict[str, None] = {}
    for step in steps:
        if step.data is None:
            continue
        own, other = step.settings.data, data_config(step.settings, step.data)
        for key in keys:
            name = key.removeprefix("data.")
            if getattr(own, name) != getattr(other, name):
                lines[f"--{key} applies to {own.dataset}, not to {other.dataset} (split {split_recipe(other)})"] = None
    return list(lines)


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """Options of `cleft reproduce`."""

    name: str
    """Name of a study, `all`, or a grid file."""
    data: tuple[str, ...] = ()
    """`dataset=folder`."""
    models: tuple[str, ...] = ()
    """`label=folder`: existing models as rows."""
    overrides: tuple[str, ...] = ()
    """Overrides for every row."""
    scale: Scale = "paper"
    seeds: int = 3
    out: Path | None = None
    only: str | None = None
    jobs: int = 1

    def command(self) -> str:
        """Return the command line, without folders."""
        options = {"--out": self.out, "--scale": self.scale, "--seeds": self.seeds}
        settings = [f"{name}={value}" for name, value in options.items() if value is not None]
        only = [] if self.only is None else [f"--only={self.only}"]  # its slashes are not folders
        sources = [f"--data={each}" for each in self.data] + [f"--model={each}" for each in self.models]
        command = command_line(["cleft", "reproduce", self.name, *sources, *settings, *self.overrides])
        return " ".join([command, *map(shlex.quote, only)])


def reproduce(
    request: StudyRequest,
    *,
    plan_only: bool = False,
    echo: Callable[[str], None] = print,
    step_runner: RunStep = run_step,
    overwrite: bool = False,
) -> StudyOutcome:
    """Plan a study, print the plan, run the remaining steps, and write its page and tables.

    Args:
        request: Study and options.
        plan_only: Print the plan without running or writing anything.
        echo: Receives the lines of the plan.
        step_runner: Runs one step.
        overwrite: Replace a page and tables that are not earlier outputs.

    Raises:
        ConfigError: If a study, dataset, preset or setting is unknown, a folder has other runs, or the label of a model
            is empty or taken.
        CheckpointError: If an imported model is not a model, is damaged or unfinished.
        DataError: If data do not fit a column, or a column would mix results of two splits.
        Interrupted, Terminated, KeyboardInterrupt: On a signal; the same command resumes.
    """
    for name, number in (("--seeds", request.seeds), ("--jobs", request.jobs)):
        if number < 1:
            raise ConfigError(f"{name} {number}: give 1 or more")
    plans, out = _plans(request)
    if not plan_only:
        for plan, folder in plans:
            check_study_file(folder)
            check_study_outputs(folder, plan.name, overwrite=overwrite)
    models = parse_models(request.models)
    plans = [(add_models(plan, models), folder) for plan, folder in plans]
    options = StudyOptions(
        data=_parse_data(request.data),
        overrides=_join_overrides(request.overrides),
        seeds=request.seeds,
        runs=out / "runs",
    )
    reproduction = Reproduction(
        plans=plans,
        options=options,
        only=request.only,
        command=request.command(),
        unavailable_weights=find_unavailable_weights([plan for plan, _ in plans], options),
    )
    for line in reproduction.describe():
        echo(line)
    if plan_only:
        return StudyOutcome([], [], 0)
    outcome = reproduction.run(jobs=request.jobs, step_runner=step_runner)
    for folder in outcome.studies:
        echo(f"{write_study_page(folder, overwrite=overwrite)}: open it in a browser")
    return outcome


def _plans(request: StudyRequest) -> tuple[list[tuple[Plan, Path]], Path]:
    """Return the studies with their folders, and the common folder."""
    path = Path(request.name)
    if path.suffix in (".yaml", ".yml"):
        grid = read_grid(path, scale=request.scale)
        out = request.out or Path("studies") / path.stem
        return [(grid, out)], out
    out = request.out or Path("studies") / f"{request.name}{'-tiny' * (request.scale == 'tiny')}"
    if request.name == "all":
        return [(paper_plan(name, request.scale), out / name) for name in PLANS], out
    return [(paper_plan(request.name, request.scale), out)], out


def _parse_data(texts: Sequence[str]) -> dict[str, Path]:
    """Parse `dataset=folder`.

    Raises:
        ConfigError: If a dataset is unknown, given twice, or its folder is missing.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in DATASETS or not folder:
            near = "" if name in DATASETS else nearest(name, list(DATASETS))
            raise ConfigError(
                f"--data {text!r} is not a dataset and its folder{near}; write "
                f"{' or '.join(f'{each}=<folder>' for each in DATASETS)}"
            )
        if name in folders:
            raise ConfigError(f"--data {name} is given twice; give one folder")
        if not Path(folder).expanduser().exists():
            raise ConfigError(f"--data {text}: folder {folder} does not exist")
        folders[name] = Path(folder).expanduser()
    return folders


def _join_overrides(words: Sequence[str]) -> tuple[str, ...]:
    """Join `--name value` to `--name=value`.

    Raises:
        ConfigError: If the study sets one of them itself.
    """
    joined: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("--") and "=" not in word and waiting:
            word = f"{word}={waiting.pop(0)}"
        name = word.partition("=")[0]
        if name in _SET_BY_STUDY:
            raise ConfigError(f"{name} is set by the study; {_SET_BY_STUDY[name]}")
        joined.append(word)
    return tuple(joined)


_SET_BY_STUDY = {
    "--seed": "give the number of seeds with --seeds",
    "--data.root": "give folders as --data chexpert=<folder>",
}
