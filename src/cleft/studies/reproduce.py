"""From the name of a table to its page: plans, says what is missing and what it costs, runs what is left."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cleft.config.loading import nearest
from cleft.data import DATASETS
from cleft.errors import ConfigError
from cleft.report.study_page import study_outputs, write_study
from cleft.report.study_table import check_study_file
from cleft.studies.doing import do
from cleft.studies.facts import lacking_weights
from cleft.studies.grids import read_grid
from cleft.studies.models import add_models, labelled_folders
from cleft.studies.plans import PLANS, Plan, Scale, paper_plan
from cleft.studies.reproduction import Ending, Reproduction
from cleft.studies.running import Do
from cleft.studies.steps import Given
from cleft.training.surroundings import command_line


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
            study_outputs(folder, plan.name, overwrite=overwrite)
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
        say(f"{write_study(folder, overwrite=overwrite)}: open it in a browser")
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
