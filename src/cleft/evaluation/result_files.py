"""Evaluations as files of a run: `results/<name>.json`, whole or not at all.

A file names classes, numbers and digests; no patient, no image id and no folder stands in it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from cleft.data.splits.subsets import ids_digest, order_key
from cleft.errors import DataError, ResourceError
from cleft.evaluation.calibration import calibrate
from cleft.evaluation.scoring import Bootstrap, Predictions, subgroup_results
from cleft.files import read_limited, write_whole
from cleft.grammar import count
from cleft.privacy import MIN_PATIENTS
from cleft.results import Calibration, Evaluation, PromptAudit, Result, Subgroups, from_json, to_json

if TYPE_CHECKING:
    from cleft.data.images.cache import PreparedImages
    from cleft.evaluation.predictions import ClassificationResults
    from cleft.evaluation.task import Question, Selection

log = logging.getLogger(__name__)

SALT = "cleft-answers-v1"
"""A new salt is a new order, and files of the old one no longer fit: never change it."""


class StoredPredictions(NamedTuple):
    """Answers in the order of the hash of their images' ids."""

    scores: NDArray[np.float32]
    """As `Scored.scores`, `[N, C]`."""
    truth: NDArray[np.float32]
    """As `Scored.truth`, `[N]` or `[N, C]`."""
    patients: NDArray[np.int32]
    """Number of each image's patient, from 0, `[N]`."""

    def scored(self) -> Predictions:
        """The answers as the metrics want them."""
        return Predictions(
            self.scores.astype(np.float64), self.truth.astype(np.float64), [str(p) for p in self.patients]
        )


def anonymise(scored: Predictions, ids: Sequence[str]) -> StoredPredictions:
    """Puts answers in the order that equal images have everywhere, and forgets who they are.

    Args:
        scored: The answers.
        ids: Record id of each image, in the same order.
    """
    order = sorted(range(len(ids)), key=lambda place: order_key(SALT, ids[place]))
    numbers: dict[str, int] = {}
    patients = [numbers.setdefault(scored.patients[place], len(numbers)) for place in order]
    return StoredPredictions(
        scores=scored.scores[order].astype(np.float32),
        truth=scored.truth[order].astype(np.float32),
        patients=np.array(patients, dtype=np.int32),
    )


def predictions_path(result: Path) -> Path:
    """The file of answers that belongs to a result file."""
    return result.with_suffix(".safetensors")


def write_predictions(kept: StoredPredictions, result: Path, evaluation: Evaluation) -> None:
    """Writes answers beside the file of their result; only their owner may read those of patients."""
    data = save({name: np.ascontiguousarray(values) for name, values in kept._asdict().items()}, _marks(evaluation))
    write_whole(predictions_path(result), data, mode=0o644 if evaluation.synthetic else 0o600)


def read_predictions(result: Path, evaluation: Evaluation) -> StoredPredictions:
    """Reads the answers of a result.

    Args:
        result: The result file.
        evaluation: What stands in it.

    Raises:
        DataError: If there are none, or they are damaged or of another evaluation.
    """
    path = predictions_path(result)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            marks = file.metadata()
            kept = StoredPredictions(*(file.get_tensor(name) for name in StoredPredictions._fields))
    except FileNotFoundError as error:
        raise DataError(
            f"{result.name} has no answers image by image beside it ({path.name}); evaluate that run again",
            reason="missing",
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate that run again", reason="damaged") from error
    if marks != _marks(evaluation):
        raise DataError(
            f"{path} holds the answers of another evaluation than {result.name}; evaluate that run again",
            reason="damaged",
        )
    return kept


def _marks(evaluation: Evaluation) -> dict[str, str]:
    return {"schema": "1", "ids_digest": evaluation.ids_digest, "checkpoint": evaluation.checkpoint}


def result_name(evaluation: Evaluation) -> str:
    """The file name that asks the same question again, so that a repeated evaluation replaces its former self.

    Equal questions are the same task, scoring, prompts, wording, classes and comparison on the same images, and the
    same way to train the head that answers.

    Example:
        >>> result_name(Evaluation(
        ...     task="zero-shot", dataset="chexpert", split="test", split_recipe="patients", split_digest="",
        ...     ids_digest="0123456789abcdef", checkpoint="", scoring="multi-class", prompts="context",
        ...     classes=("Edema", "Pneumonia"), class_prompts=(), results=(), floors=()))
        'zero-shot-chexpert-test-edema-pneumonia-context-540d4a33'
    """
    names = evaluation.classes if len(evaluation.classes) <= 3 else (f"{len(evaluation.classes)} classes",)
    parts = [evaluation.task, evaluation.dataset, evaluation.split, *names]
    if evaluation.prompts != "none":
        parts.append(evaluation.prompts)
    if evaluation.protocol:
        share = f"{100 * evaluation.fraction:g} percent"
        parts += [evaluation.protocol, share, f"seed {evaluation.training_seed}"]
    if evaluation.scoring != "multi-class":
        parts.append(evaluation.scoring)
    asked = [evaluation.ids_digest, *evaluation.classes]
    if evaluation.wording != "default":
        parts.append(evaluation.wording)
        asked += evaluation.class_prompts  # two files of one name may say different things
    if evaluation.similarity != "global":
        parts.append(evaluation.similarity)
    if evaluation.standardised:
        parts.append("standardised")
    question = hashlib.sha256("|".join(asked).encode()).hexdigest()[:8]
    return re.sub(r"[^a-z0-9]+", "-", " ".join([*parts, question]).lower()).strip("-")


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The main numbers in a few lines, each beside the highest floor of its metric.

    Example:
        >>> summary_lines(Evaluation(
        ...     task="zero-shot", dataset="chexpert", split="test", split_recipe="patients", split_digest="",
        ...     ids_digest="", checkpoint="", scoring="multi-class", prompts="context", classes=(), class_prompts=(),
        ...     results=(Result(metric="auc", value=0.9, interval=(0.85, 0.94), images=60, patients=40),),
        ...     floors=(Result(metric="majority-class/auc", value=0.5),)))
        ['auc 0.900 [0.850-0.940], 60 images of 40 patients; floor 0.500 (majority-class)']
    """
    searched = evaluation.task == "retrieval"
    told = [result for result in evaluation.results if searched or "/" not in result.metric]
    return [
        *(_line(result, evaluation.floors) for result in told),
        *_calibration_lines(evaluation.calibration),
        *_gap_lines(evaluation.subgroups),
        *_audit_lines(evaluation.audit),
    ]


def _calibration_lines(found: Calibration | None) -> list[str]:
    if found is None:
        return []
    lines = [_line(found.ece, ())]
    if found.ece_after is None or found.temperature is None:
        return [f"{lines[0]}; {found.reason}"] if found.reason else lines
    fitted = f"temperature {found.temperature:.3g}, fitted on {count(found.fitted_on, 'validation image')}"
    return [*lines, f"{_line(found.ece_after, ())}; {fitted}"]


def _gap_lines(found: Sequence[Subgroups]) -> list[str]:
    """How far groups of patients lie apart, where that was measured."""
    return [
        _line(replace(gap, metric=f"{gap.metric} gap by {groups.by}"), ())
        for groups in found
        for gap in groups.gaps
        if gap.value is not None
    ]


def _audit_lines(audit: PromptAudit | None) -> list[str]:
    """How far the wording of prompts decides, and what the context has become."""
    if audit is None:
        return []
    lines = [
        f"{spread.metric} of {len(audit.templates)} wordings: {spread.lowest:.3f} to {spread.highest:.3f}, "
        f"mean {spread.mean:.3f}, standard deviation {spread.deviation:.3f}"
        for spread in audit.spread
    ]
    for denial in audit.denials:
        areas = [
            f"{result.metric} {'not measured' if result.value is None else f'{result.value:.3f}'}"
            for result in denial.results
        ]
        shown = "" if denial.shown is None else f", shown by {100 * denial.shown:.0f} %"
        lines.append(
            f"{denial.finding}: present and absent prompt have cosine {denial.cosine:.3f}; {', '.join(areas)}; "
            f"said present of {100 * denial.said_present:.0f} %{shown}"
        )
    if audit.context and audit.token_norm is not None:
        norms = [vector.norm for vector in audit.context]
        lines.append(
            f"context: {count(len(norms), 'vector')} of norm {min(norms):.3g} to {max(norms):.3g}, tokens have "
            f"{audit.token_norm:.3g} in the mean"
        )
    lines += [
        f"  {vector.place}: {', '.join(f'{token!r} {cosine:.2f}' for token, cosine in vector.nearest)}"
        for vector in audit.context
    ]
    return lines


def _line(result: Result, floors: Sequence[Result]) -> str:
    named = [
        (floor.value, floor.metric.partition("/")[0])
        for floor in floors
        if floor.metric.partition("/")[2] == result.metric and floor.value is not None
    ]
    value = "not measured" if result.value is None else f"{result.value:.3f}"
    interval = "" if result.interval is None else f" [{result.interval[0]:.3f}-{result.interval[1]:.3f}]"
    reason = f" ({result.reason})" if result.reason else ""
    rests = f"{count(result.images, 'image')} of {count(result.patients, 'patient')}"
    floor = f"; floor {max(named)[0]:.3f} ({max(named)[1]})" if named else ""
    return f"{result.metric} {value}{interval}{reason}, {rests}{floor}"


def write_evaluation(evaluation: Evaluation, folder: Path, kept: StoredPredictions | None = None) -> Path:
    """Writes one evaluation into a run's `results`, in place of an earlier one of the same question.

    Args:
        evaluation: What was measured.
        folder: The run's `results` folder; made where it is missing.
        kept: The answers image by image, which are written beside it, so that another model can be compared.

    Returns:
        The file. Only its owner may read it while it carries images of patients.

    Raises:
        ResourceError: If it cannot be written; an earlier file then stays as it was.
    """
    path = folder / f"{result_name(evaluation)}.json"
    shown = evaluation.examples or any(each.examples for each in evaluation.retrieval)
    mode = 0o644 if evaluation.synthetic or not shown else 0o600
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kept is not None:
            write_predictions(kept, path, evaluation)
        write_whole(path, to_json(evaluation).encode(), mode=mode)
    except OSError as error:
        raise ResourceError(f"cannot write {path} ({error.strerror}); make room or choose another folder") from error
    return path


def read_evaluation(path: Path) -> Evaluation:
    """Reads one evaluation.

    Raises:
        DataError: If the file is missing or is not exactly an evaluation of this version.
    """
    remedy = "evaluate the run again"
    return from_json(read_limited(path, remedy=remedy), Evaluation, where=path.name, remedy=remedy)


EXAMPLE_SALT = "cleft-examples-v1"
EXAMPLE_SIZE = 192
"""Longest side of an example in pixels."""
TOP_CLASSES = 3


def pick_examples(
    answers: ClassificationResults, ids: Sequence[str], classes: Sequence[str], prepared: PreparedImages, count: int
) -> tuple[dict[str, Any], ...]:
    """Takes images in the order of a hash of their ids, each truth in turn.

    Args:
        answers: What was asked and answered.
        ids: Record id of each row of the embeddings.
        classes: Names of the columns of the probabilities.
        prepared: Where the pixels are.
        count: How many to take at most.

    Returns:
        For each: `image` (PNG as base64), `truth`, `answers` (the three likeliest classes, each with
        its probability). No id.
    """
    order = sorted(range(len(answers.rows)), key=lambda place: order_key(EXAMPLE_SALT, ids[answers.rows[place]]))
    waiting: dict[str, list[int]] = {}
    for place in order:
        waiting.setdefault(answers.truths[place], []).append(place)
    rounds = max(map(len, waiting.values()), default=0)
    in_turn = [places[turn] for turn in range(rounds) for places in waiting.values() if turn < len(places)]
    return tuple(
        {
            "image": as_png(prepared.pixels(ids[answers.rows[place]])),
            "truth": answers.truths[place] or "none of these",
            "answers": _likeliest(answers.probabilities[place], classes),
        }
        for place in in_turn[:count]
    )


def as_png(pixels: NDArray[np.uint8]) -> str:
    """A gray image, made smaller where it is large, as a base64 PNG."""
    scale = min(1.0, EXAMPLE_SIZE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    _, data = cv2.imencode(".png", cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))
    return base64.b64encode(data.tobytes()).decode()


def _likeliest(probabilities: NDArray[np.float64], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    return tuple((classes[int(c)], round(float(probabilities[c]), 4)) for c in best)


REVERSED = 0.4
"""An AUC below this, whose whole interval lies below a half, is no bad luck."""


def write_down(
    question: Question,
    run: Path,
    images: Selection,
    answers: ClassificationResults,
    *,
    task: str,
    checkpoint: str,
    classes: Sequence[str],
    draws: Bootstrap,
    examples: int,
    prompts: str = "none",
    class_prompts: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    validation: Predictions | None = None,
    unvalidated: str | None = None,
) -> Evaluation:
    """Makes the noun of a result file of answers and of the images they are about.

    Args:
        question: What was asked.
        run: The run that was asked.
        images: What it was asked about; `answers.rows` are rows of its records.
        answers: What it answered.
        task: As `--task` names it.
        checkpoint: Digest of the weights that answered.
        classes: What was told apart.
        draws: How intervals were drawn.
        examples: Images with their answers to keep for the page; 0 keeps none.
        prompts: What class names were read behind.
        class_prompts: These prompts.
        options: Options of the command besides those of `question`.
        notes: What a reader must know of this task, behind the notes of images and answers.
        validation: Answers to validation images of the same data, to fit a temperature on.
        unvalidated: Why there are none.

    Returns:
        The evaluation; an AUC that says the opposite of what it should is warned of, in its notes and in the log.
    """
    turned = reversal_notes(answers.results)
    for note in turned:
        log.warning("%s", note)
    asked = [images.records[row] for row in answers.rows]
    return Evaluation(
        task=task,
        dataset=images.dataset,
        split=question.split,
        split_recipe=images.recipe,
        split_digest=images.split_digest,
        ids_digest=ids_digest(record.id for record in asked),
        checkpoint=checkpoint,
        scoring=question.scoring,
        prompts=prompts,
        classes=tuple(classes),
        class_prompts=tuple(class_prompts),
        results=answers.results,
        floors=answers.baselines,
        confusion=answers.confusion,
        roc=answers.roc,
        examples=pick_examples(answers, [record.id for record in images.records], classes, images.prepared, examples),
        synthetic=images.synthetic,
        overlap_left_out=images.left_out,
        command=question.command(run, task, options or {}),
        seed=draws.seed,
        notes=(*images.notes, *answers.notes, *turned, *notes),
        calibration=calibrate(answers.scored, validation, reason=unvalidated, draws=draws),
        subgroups=subgroup_results(
            answers.scored, asked, classes, draws, fewest=1 if images.synthetic else MIN_PATIENTS
        ),
    )


def reversal_notes(results: Sequence[Result]) -> list[str]:
    """A warning about every AUC that lies far below a half, interval and all: images are ranked the wrong way round.

    Example:
        >>> reversal_notes([Result(metric="auc/Edema", value=0.2, interval=(0.1, 0.3))])[0][:59]
        'Beware: auc/Edema 0.200 [0.100-0.300] lies far below 0.5, w'
    """
    low = [
        f"{result.metric} {result.value:.3f} [{result.interval[0]:.3f}-{result.interval[1]:.3f}]"
        for result in results
        if result.metric.partition("/")[0] == "auc"
        and result.value is not None
        and result.interval is not None
        and result.value < REVERSED
        and result.interval[1] < 0.5
    ]
    if not low:
        return []
    lies = "lies" if len(low) == 1 else "lie"
    return [
        f"Beware: {', '.join(low)} {lies} far below 0.5, which is chance: images that show a class are ranked behind "
        f"those that do not. Look whether labels or prompts are reversed."
    ]
