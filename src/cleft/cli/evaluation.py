"""Commands that evaluate and report: evaluate, report, reproduce."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cleft.cli.data import input_paths
from cleft.cli.options import OutputOptions, argument, command, option
from cleft.errors import ConfigError
from cleft.evaluation import TASKS, ClassifierOptions


def _task_options() -> list[type]:
    return list(dict.fromkeys(TASKS.values()))


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Options of `cleft evaluate`."""

    run: Path = argument()
    """Run folder; with --against also one of its result files."""
    task: Literal["zero-shot", "linear-probe", "fine-tune", "retrieval", "prompts"] | None = None
    """`zero-shot`: classification by class prompts. `linear-probe`, `fine-tune`: the classifier of a run of cleft
    classify. `retrieval`: image-text and image-image retrieval. `prompts`: prompt sensitivity and the tokens nearest to
    a learned context. By default the classifier of the run if it has one, otherwise zero-shot."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], metadata={"tasks": _task_options})
    """Options of the task, as far as they were given."""
    embeddings: Path | None = option(None, metavar="CSV")
    """Also write image embeddings and the paths of the images to this table (the run folder stores no such paths)."""
    against: Path | None = option(None, metavar="RUN")
    """Second run, evaluated in the same way, or a result file: compare the two on the same images by a paired bootstrap
    over patients."""


@command("evaluate", settings=(), loads_torch=True)
def evaluate_command(request: EvaluateRequest, words: list[str]) -> None:
    """Evaluate a model on a dataset, or compare two models."""
    from cleft.evaluation.result_files import read_evaluation, summary_lines

    if request.against is not None:
        if request.task in ("retrieval", "prompts"):
            raise ConfigError(f"--against compares classifications; leave out --task {request.task}")
        if request.embeddings is not None:
            raise ConfigError("--embeddings are those of one run; leave out --against")
        return _compare(request, request.against, words)
    write_table = _embeddings_writer(request, words)
    path = _evaluate_run(request, request.run, words)
    print("\n".join(summary_lines(read_evaluation(path))))
    if write_table is not None:
        print(f"{write_table()}: a row for each image, with its path; keep it private")
    print(f"{path}; next: cleft report {shlex.quote(str(request.run))}")


def _embeddings_writer(request: EvaluateRequest, words: list[str]) -> Callable[[], Path] | None:
    """Returns a function that writes the table of embeddings, after checking that it can be written."""
    if request.embeddings is None:
        return None
    from cleft.evaluation.task import evaluation_data, evaluation_settings, write_embeddings
    from cleft.files import Output

    Output(request.embeddings, "--embeddings", overwrite=None).check()  # before the run is read
    task = _task_of(request, request.run)
    if TASKS[task] is ClassifierOptions:
        raise ConfigError(
            f"--embeddings: {request.run} is a classifier, which has no embeddings; name the run of its image encoder"
        )
    options = _options_of(task, request, words)
    config = evaluation_data(evaluation_settings(request.run, options), options)
    inputs = input_paths(str(request.run / "config.yaml"), config)
    out = Output(request.embeddings, "--embeddings", overwrite=None, inputs=inputs, mode=0o600).check()
    return lambda: write_embeddings(request.run, options, out)


def _compare(request: EvaluateRequest, other: Path, words: list[str]) -> None:
    from cleft.evaluation.compare import compare, comparison_lines, write_comparison
    from cleft.evaluation.result_files import read_evaluation

    first, second = (
        place if place.suffix == ".json" else _evaluate_run(request, place, words) for place in (request.run, other)
    )
    typed = f"cleft evaluate {request.run.name}" if request.run.suffix == ".json" else read_evaluation(first).command
    comparison = compare(first, second, command=f"{typed} --against {other.resolve().name}")
    print("\n".join(comparison_lines(comparison)))
    run = first.parent.parent
    print(f"{write_comparison(comparison, run)}; next: cleft report {shlex.quote(str(run))}")


def _task_of(request: EvaluateRequest, run: Path) -> str:
    from cleft.models.model_folder import read_head_info

    return request.task or ("linear-probe" if read_head_info(run) is not None else "zero-shot")


def _options_of(task: str, request: EvaluateRequest, words: list[str]) -> Any:
    """Returns the options of a task.

    Raises:
        ConfigError: If an option was given that the task does not have.
    """
    kind = TASKS[task]
    used = {entry.name for entry in fields(kind)}
    unused = [name for name in request.options if name not in used]
    if task == "retrieval" and "classes" in request.options and "per_class" not in request.options:
        unused.append("classes")
    if unused:
        value = request.options[unused[0]]
        given = f"{unused[0].replace('_', '-')}{'' if value is True else f' {value}'}"
        fixed = "a classifier, whose classes are fixed and which uses no prompts"
        what = fixed if kind is ClassifierOptions else f"--task {task}"
        raise ConfigError(f"--{given} does nothing with {what}; leave it out")
    mode: dict[str, Any] = {"mode": request.task} if kind is ClassifierOptions else {}
    return kind(**request.options, **mode, overrides=tuple(words))


def _evaluate_run(request: EvaluateRequest, run: Path, words: list[str]) -> Path:
    """Evaluates a run and returns its result file."""
    task = _task_of(request, run)
    options = _options_of(task, request, words)
    if task == "zero-shot":
        from cleft.evaluation.zero_shot import evaluate_zero_shot

        return evaluate_zero_shot(run, options)
    if task == "retrieval":
        from cleft.evaluation.retrieval import evaluate_retrieval

        return evaluate_retrieval(run, options)
    if task == "prompts":
        from cleft.evaluation.prompt_sensitivity import evaluate_prompts

        return evaluate_prompts(run, options)
    from cleft.evaluation.classifier import evaluate_classifier

    return evaluate_classifier(run, options)


@dataclass(frozen=True, kw_only=True)
class ReportRequest(OutputOptions):
    """Options of `cleft report`."""

    folders: tuple[Path, ...] = argument()
    """Run folders, the folder of a study, or folders that contain them."""
    out: Path | None = option(None, metavar="HTML")
    """Page of the runs (default: report.html); the page of a study is study.html in its folder."""
    images: bool | None = None
    """Show images; by default only synthetic ones."""


@command("report")
def report_command(request: ReportRequest, words: list[str]) -> None:
    """Write a self-contained HTML page about runs or a study."""
    from cleft.report.study_page import write_pages

    for page in write_pages(request.folders, request.out, images=request.images, overwrite=request.overwrite):
        print(f"{page}: open it in a browser")


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest(OutputOptions):
    """Options of `cleft reproduce`."""

    study: str = argument()
    """Name of a study (table1, table2, table3, figure3, tableS1, tableS2, tableS3 or all), or a YAML file."""
    data: tuple[str, ...] = option((), metavar="NAME=FOLDER")
    """Dataset and folder, such as chexpert=/data/CheXpert; repeat it for others."""
    model: tuple[str, ...] = option((), metavar="LABEL=FOLDER")
    """Additional row: an existing model, imported or trained; repeat it for others."""
    scale: Literal["paper", "tiny"] = "paper"
    """Models of the paper, or small ones that train on a laptop in a minute each."""
    seeds: int = option(3, metavar="N")
    """Runs of each row, with seeds 0 to N-1."""
    out: Path | None = option(None, metavar="FOLDER")
    """Folder of the study; repeat the command to resume (default: studies/<name>)."""
    only: str | None = option(None, metavar="PATTERN")
    """Rows, or cells as row/column: 'cleft-*', '*/rsna/zero-shot'."""
    plan: bool = False
    """Print the runs and their cost, and stop."""
    jobs: int = option(1, metavar="N")
    """Runs at the same time, each in its own process."""


@command(
    "reproduce",
    loads_torch=True,
    settings=(
        *("data.patient_dataset", "data.split", "classify.protocol", "optim.steps", "train.batch_size"),
        *("data.workers", "data.cache", "train.accelerator", "train.precision"),
    ),
)
def reproduce_command(request: ReproduceRequest, words: list[str]) -> int:
    """Reproduce a table or figure of the paper, or run a grid of your own."""
    from cleft.studies.reproduce import StudyRequest, reproduce

    study = StudyRequest(
        name=request.study,
        data=request.data,
        models=request.model,
        overrides=tuple(words),
        scale=request.scale,
        seeds=request.seeds,
        out=request.out,
        only=request.only,
        jobs=request.jobs,
    )
    ending = reproduce(study, plan_only=request.plan, echo=print, overwrite=request.overwrite)
    for failure in ending.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return ending.exit_code
