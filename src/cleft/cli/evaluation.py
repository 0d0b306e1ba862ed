"""Commands that evaluate and report: evaluate, report, reproduce."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cleft.cli.data import input_paths
from cleft.cli.options import OutputOptions, argument, command, option
from cleft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Options of `cleft evaluate`."""

    run: Path = argument()
    """Run folder; with --against also one of its result files."""
    task: Literal["zero-shot", "linear-probe", "fine-tune", "retrieval", "prompts"] | None = None
    """`zero-shot`: classification by class prompts. `linear-probe`, `fine-tune`: the classifier of a run of cleft
    classify. `retrieval`: image-text and image-image retrieval. `prompts`: prompt sensitivity and the tokens nearest to
    a learned context. By default the classifier of the run if it has one, otherwise zero-shot."""
    direction: str | None = None
    """For retrieval: image-to-text, text-to-image, image-to-image, or several separated by commas; by default all."""
    data: str | None = option(None, metavar="DATASET:FOLDER")
    """Dataset and folder or table, such as chexpert:/data/CheXpert; by default the data of the run. Settings of the
    data can be given too, such as --data.root <folder> for images that were moved."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Images to evaluate."""
    classes: str | None = None
    """Name of a class set, or findings separated by commas; by default those of the run."""
    scoring: Literal["multi-class", "present-absent"] | None = None
    """One of several classes, or presence of each finding; by default multi-class, or that of the classifier."""
    blank: Literal["unknown", "absent"] | None = None
    """Value of missing labels; by default unknown, or that of the classifier."""
    prompts: Literal["auto", "context", "handwritten"] | None = None
    """Learned context or handwritten prompts; auto: the context if there is one (default)."""
    per_class: int | None = option(None, metavar="N")
    """Evaluate N images of each class only."""
    per_patient: int | None = option(None, metavar="N")
    """With --per-class: at most N images of a patient in a class (default: 4)."""
    class_names: str | None = None
    """Class names in prompts: default, released, gloria, or a YAML file; by default those of the run."""
    similarity: Literal["global", "local", "both", "released"] | None = None
    """Image and prompt embeddings (global). For GLoRIA also: prompt words and image regions (local), the mean of both,
    or both with the word weights of its release, standardised (released)."""
    standardise: bool = False
    """Standardise the scores of each class over the images; predictions then depend on each other."""
    allow_overlap: bool = False
    """Also score patients the run was trained on, and report it."""
    drop_overlap: bool = False
    """Score only patients the run was not trained on."""
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
    from cleft.evaluation.task import Question, class_names, write_embeddings
    from cleft.files import Output
    from cleft.models.image_classifier import read_head_info

    Output(request.embeddings, "--embeddings", overwrite=None).check()  # before the run is read
    if request.task in _HEADS or read_head_info(request.run) is not None:
        raise ConfigError(
            f"--embeddings: {request.run} is a classifier, which has no embeddings; name the run of its image encoder"
        )
    selection: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("data", "split", "per_class", "per_patient", "allow_overlap", "drop_overlap")
    }
    question = Question(classes=class_names(request.classes), overrides=tuple(words), **selection)
    config = question.config(question.run_settings(request.run))
    inputs = input_paths(str(request.run / "config.yaml"), config)
    out = Output(request.embeddings, "--embeddings", overwrite=None, inputs=inputs, mode=0o600).check()
    return lambda: write_embeddings(request.run, question, out)


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


_HEADS = ("linear-probe", "fine-tune")
_ZERO_SHOT = ("similarity", "standardise")
_NOT_OF_HEADS = ("direction", "classes", "prompts", "class_names", *_ZERO_SHOT)
_UNUSED = {
    "zero-shot": ("direction",),
    "linear-probe": _NOT_OF_HEADS,
    "fine-tune": _NOT_OF_HEADS,
    "retrieval": ("scoring", "blank", "prompts", "class_names", *_ZERO_SHOT),
    "prompts": ("direction", "prompts", *_ZERO_SHOT),
}
"""Options that a task does not use."""


def _evaluate_run(request: EvaluateRequest, run: Path, words: list[str]) -> Path:
    """Evaluates a run and returns its result file."""
    from cleft.models.image_classifier import read_head_info

    task = request.task or ("linear-probe" if read_head_info(run) is not None else "zero-shot")
    unused = [name for name in _UNUSED[task] if getattr(request, name) not in (None, False)]
    if task == "retrieval" and request.classes and not request.per_class:
        unused.append("classes")
    if unused:
        value = getattr(request, unused[0])
        given = "" if value is True else f" {value}"
        what = "a classifier, whose classes are fixed and which uses no prompts" if task in _HEADS else f"--task {task}"
        raise ConfigError(f"--{unused[0].replace('_', '-')}{given} does nothing with {what}; leave it out")
    arguments: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("data", "split", "scoring", "blank", "per_class", "per_patient", "allow_overlap", "drop_overlap")
        if getattr(request, name) is not None
    }
    arguments["overrides"] = tuple(words)
    if task in _HEADS:
        from cleft.evaluation.classifier import evaluate_classifier

        return evaluate_classifier(run, task=request.task, **arguments)
    if task == "zero-shot":
        from cleft.evaluation.zero_shot import evaluate_zero_shot

        return evaluate_zero_shot(
            run,
            classes=request.classes,
            prompts=request.prompts or "auto",
            wording=request.class_names,
            similarity=request.similarity or "global",
            standardise=request.standardise,
            **arguments,
        )
    from cleft.evaluation.task import Question, class_names

    question = Question(classes=class_names(request.classes), **arguments)
    if task == "prompts":
        from cleft.evaluation.prompt_sensitivity import evaluate_prompts

        return evaluate_prompts(run, question, wording=request.class_names)
    from cleft.evaluation.retrieval import evaluate_retrieval, parse_directions

    return evaluate_retrieval(run, question, directions=parse_directions(request.direction))


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
