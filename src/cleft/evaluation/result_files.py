"""Result files of a run: `results/<name>.json`, and the predictions behind it in `results/<name>.safetensors`.

They hold classes, numbers and digests; no patient, image id or folder. Predictions are in the order of a hash of the
image ids, which is the same for the same images, and patients are numbered by first appearance, so that two models can
be compared without naming anybody.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Sequence
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
from cleft.evaluation import Bootstrap, EvaluationOptions
from cleft.evaluation.calibration import calibrate
from cleft.evaluation.scoring import Predictions, subgroup_results
from cleft.files import as_path, read_limited, write_whole
from cleft.grammar import count
from cleft.privacy import MIN_PATIENTS
from cleft.results import Calibration, Evaluation, PromptSensitivity, Result, Subgroups, from_json, to_json

if TYPE_CHECKING:
    from cleft.data.images.cache import PreparedImages
    from cleft.evaluation.predictions import ClassificationResults
    from cleft.evaluation.task import Selection

log = logging.getLogger(__name__)

ORDER_SALT = "cleft-answers-v1"
"""Salt of the order of predictions. Never change it: files in another order cannot be compared."""
EXAMPLE_SALT = "cleft-examples-v1"
EXAMPLE_SIZE = 192
"""Longest side of an example image in pixels."""
TOP_CLASSES = 3
"""Classes stored with an example image."""
REVERSED_AUC = 0.4
"""An AUC below this, with its interval below 0.5, means that labels or prompts are probably reversed."""


class StoredPredictions(NamedTuple):
    """Predictions in the order of the hash of their image ids."""

    scores: NDArray[np.float32]
    """As `Predictions.scores`, `[N, C]`."""
    truth: NDArray[np.float32]
    """As `Predictions.truth`, `[N]` or `[N, C]`."""
    patients: NDArray[np.int32]
    """Patient number of each image, from 0, `[N]`."""

    def predictions(self) -> Predictions:
        """Returns the predictions as float64, for the metrics."""
        patients = [str(number) for number in self.patients]
        return Predictions(self.scores.astype(np.float64), self.truth.astype(np.float64), patients)


def anonymise(predictions: Predictions, ids: Sequence[str]) -> StoredPredictions:
    """Returns predictions in the order of the hash of their ids, with numbers for patients.

    Args:
        predictions: Predictions of `N` images.
        ids: Record id of each image, `[N]`.
    """
    order = sorted(range(len(ids)), key=lambda row: order_key(ORDER_SALT, ids[row]))
    numbers: dict[str, int] = {}
    patients = [numbers.setdefault(predictions.patients[row], len(numbers)) for row in order]
    return StoredPredictions(
        scores=predictions.scores[order].astype(np.float32),
        truth=predictions.truth[order].astype(np.float32),
        patients=np.array(patients, dtype=np.int32),
    )


def predictions_path(result: Path) -> Path:
    """Returns the path of the predictions of a result file."""
    return result.with_suffix(".safetensors")


def write_predictions(stored: StoredPredictions, result: Path, evaluation: Evaluation) -> None:
    """Writes predictions next to their result file; readable only by the owner unless the images are synthetic."""
    arrays = {name: np.ascontiguousarray(values) for name, values in stored._asdict().items()}
    data = save(arrays, _predictions_metadata(evaluation))
    write_whole(predictions_path(result), data, mode=0o644 if evaluation.synthetic else 0o600)


def read_predictions(result: Path, evaluation: Evaluation) -> StoredPredictions:
    """Reads the predictions of a result file.

    Args:
        result: Result file.
        evaluation: Its content.

    Raises:
        DataError: If they are missing, damaged, or of another evaluation.
    """
    path = predictions_path(result)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            stored = StoredPredictions(*(file.get_tensor(name) for name in StoredPredictions._fields))
    except FileNotFoundError as error:
        raise DataError(
            f"{result.name} has no predictions next to it ({path.name}); evaluate that run again", reason="missing"
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate that run again", reason="damaged") from error
    if metadata != _predictions_metadata(evaluation):
        raise DataError(
            f"{path} holds the predictions of another evaluation than {result.name}; evaluate that run again",
            reason="damaged",
        )
    return stored


def _predictions_metadata(evaluation: Evaluation) -> dict[str, str]:
    return {"schema": "1", "ids_digest": evaluation.ids_digest, "checkpoint": evaluation.checkpoint}


def result_name(evaluation: Evaluation) -> str:
    """Returns the file name of an evaluation; re-running the same evaluation overwrites its file.

    Two evaluations are the same if task, scoring, prompts, class names, classes, similarity and images are, and the
    training options of a classifier.

    Example:
        >>> result_name(Evaluation(
        ...     task="zero-shot", dataset="chexpert", split="test", split_recipe="patients", split_digest="",
        ...     ids_digest="0123456789abcdef", checkpoint="", scoring="multi-class", prompts="context",
        ...     classes=("Edema", "Pneumonia"), class_prompts=(), results=(), baselines=()))
        'zero-shot-chexpert-test-edema-pneumonia-context-540d4a33'
    """
    names = evaluation.classes if len(evaluation.classes) <= 3 else (f"{len(evaluation.classes)} classes",)
    parts = [evaluation.task, evaluation.dataset, evaluation.split, *names]
    if evaluation.prompts != "none":
        parts.append(evaluation.prompts)
    if evaluation.protocol:
        share = f"{100 * evaluation.training_fraction:g} percent"
        parts += [evaluation.protocol, share, f"seed {evaluation.training_seed}"]
    if evaluation.scoring != "multi-class":
        parts.append(evaluation.scoring)
    hashed = [evaluation.ids_digest, *evaluation.classes]
    if evaluation.class_names != "default":
        parts.append(evaluation.class_names)
        hashed += evaluation.class_prompts  # files of the same name may hold different class names
    if evaluation.similarity != "global":
        parts.append(evaluation.similarity)
    if evaluation.standardised:
        parts.append("standardised")
    digest = hashlib.sha256("|".join(hashed).encode()).hexdigest()[:8]
    return re.sub(r"[^a-z0-9]+", "-", " ".join([*parts, digest]).lower()).strip("-")


def write_evaluation(evaluation: Evaluation, folder: Path, stored: StoredPredictions | None = None) -> Path:
    """Writes a result file, replacing an earlier one of the same evaluation.

    Args:
        evaluation: Results.
        folder: The run's `results` folder; created if missing.
        stored: Predictions to write next to it.

    Returns:
        The result file; readable only by the owner if it contains images of patients.

    Raises:
        ResourceError: If it cannot be written; an earlier file is then unchanged.
    """
    path = folder / f"{result_name(evaluation)}.json"
    has_images = evaluation.examples or any(each.examples for each in evaluation.retrieval)
    mode = 0o644 if evaluation.synthetic or not has_images else 0o600
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if stored is not None:
            write_predictions(stored, path, evaluation)
        write_whole(path, to_json(evaluation).encode(), mode=mode)
    except OSError as error:
        raise ResourceError(f"cannot write {path} ({error.strerror}); make room or choose another folder") from error
    return path


def read_evaluation(path: Path | str) -> Evaluation:
    """Reads a result file.

    Raises:
        DataError: If the file is missing or is not an evaluation of this version.
    """
    path, remedy = as_path(path, "path"), "evaluate the run again"
    evaluation = from_json(read_limited(path, remedy=remedy), Evaluation, where=path.name, remedy=remedy)
    # Files written before `per_class` was a field have the number in their command only.
    drawn = re.search(r"--per-class (\d+)", evaluation.command) if evaluation.per_class is None else None
    return replace(evaluation, per_class=int(drawn[1])) if drawn else evaluation


def base_evaluation(
    task: str, command: str, images: Selection, rows: Sequence[int], options: EvaluationOptions, checkpoint: str
) -> Evaluation:
    """Returns an evaluation without results: task, images and weights.

    Args:
        task: Name of the task.
        command: Command of the evaluation.
        images: Images it was run on.
        rows: Rows of the images that were scored.
        options: Options of the evaluation.
        checkpoint: Digest of the weights.
    """
    return Evaluation(
        task=task,
        dataset=images.dataset,
        split=options.split,
        split_recipe=images.recipe,
        split_digest=images.split_digest,
        ids_digest=ids_digest(images.records[row].id for row in rows),
        checkpoint=checkpoint,
        scoring="multi-class",
        prompts="none",
        classes=(),
        class_prompts=(),
        results=(),
        baselines=(),
        synthetic=images.synthetic,
        per_class=options.per_class,
        overlap_left_out=images.overlap_left_out,
        command=command,
        seed=options.bootstrap.seed,
        notes=tuple(images.notes),
    )


def add_classification(
    evaluation: Evaluation,
    classified: ClassificationResults,
    images: Selection,
    classes: Sequence[str],
    validation: Predictions | str,
    bootstrap: Bootstrap,
    *,
    examples: int,
) -> Evaluation:
    """Adds the results of a classification to an evaluation, with calibration, subgroups and example images.

    An AUC far below 0.5 is warned of, in the notes and in the log.

    Args:
        evaluation: Evaluation without results.
        classified: Results and predictions; its rows are rows of the records of `images`.
        images: Images it was run on.
        classes: Names of the classes.
        validation: Predictions on validation images to fit a temperature on, or why there are none.
        bootstrap: How intervals are estimated.
        examples: Number of example images.
    """
    reversed_notes = reversal_notes(classified.results)
    for note in reversed_notes:
        log.warning("%s", note)
    predictions = classified.predictions
    scored = [images.records[row] for row in classified.rows]
    ids = [record.id for record in images.records]
    return replace(
        evaluation,
        classes=tuple(classes),
        results=classified.results,
        baselines=classified.baselines,
        confusion=classified.confusion,
        roc=classified.roc,
        examples=pick_examples(classified, ids, classes, images.prepared, examples),
        notes=(*evaluation.notes, *classified.notes, *reversed_notes),
        calibration=calibrate(predictions, validation, bootstrap),
        subgroups=subgroup_results(
            predictions, scored, classes, bootstrap, min_patients=1 if images.synthetic else MIN_PATIENTS
        ),
    )


def reversal_notes(results: Sequence[Result]) -> list[str]:
    """Returns a warning if an AUC and its interval are far below 0.5, which means that images are ranked in reverse.

    Example:
        >>> reversal_notes([Result(metric="auc/Edema", value=0.2, interval=(0.1, 0.3))])[0][:58]
        'Beware: auc/Edema 0.200 [0.100-0.300] is far below chance '
    """
    low = [
        f"{result.metric} {result.value:.3f} [{result.interval[0]:.3f}-{result.interval[1]:.3f}]"
        for result in results
        if result.metric.partition("/")[0] == "auc"
        and result.value is not None
        and result.interval is not None
        and result.value < REVERSED_AUC
        and result.interval[1] < 0.5
    ]
    if not low:
        return []
    return [
        f"Beware: {', '.join(low)} {'is' if len(low) == 1 else 'are'} far below chance (0.5): images that show a class "
        f"are ranked below those that do not. Check whether labels or prompts are reversed."
    ]


def pick_examples(
    classified: ClassificationResults, ids: Sequence[str], classes: Sequence[str], prepared: PreparedImages, number: int
) -> tuple[dict[str, Any], ...]:
    """Picks example images by a hash of their ids, taking true classes in turn; correct or not plays no role.

    Args:
        classified: Predictions.
        ids: Record id of each image of the selection.
        classes: Names of the columns of the probabilities.
        prepared: Pixels of the images.
        number: Maximum number of images.

    Returns:
        For each: `image` (PNG as base64), `truth`, `answers` (the three most probable classes with their
        probabilities). No id.
    """
    rows = classified.rows
    order = sorted(range(len(rows)), key=lambda place: order_key(EXAMPLE_SALT, ids[rows[place]]))
    by_truth: dict[str, list[int]] = {}
    for place in order:
        by_truth.setdefault(classified.truths[place], []).append(place)
    rounds = max(map(len, by_truth.values()), default=0)
    in_turn = [places[turn] for turn in range(rounds) for places in by_truth.values() if turn < len(places)]
    return tuple(
        {
            "image": as_png(prepared.pixels(ids[rows[place]])),
            "truth": classified.truths[place] or "none of these",
            "answers": _top_classes(classified.probabilities[place], classes),
        }
        for place in in_turn[:number]
    )


def as_png(pixels: NDArray[np.uint8]) -> str:
    """Returns a gray image, downscaled to at most `EXAMPLE_SIZE`, as a base64 PNG."""
    scale = min(1.0, EXAMPLE_SIZE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    _, data = cv2.imencode(".png", cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))
    return base64.b64encode(data.tobytes()).decode()


def _top_classes(probabilities: NDArray[np.float64], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    return tuple((classes[int(c)], round(float(probabilities[c]), 4)) for c in best)


def summary_lines(evaluation: Evaluation) -> list[str]:
    """Returns the main results as lines of text, each with the best baseline of its metric.

    Example:
        >>> summary_lines(Evaluation(
        ...     task="zero-shot", dataset="chexpert", split="test", split_recipe="patients", split_digest="",
        ...     ids_digest="", checkpoint="", scoring="multi-class", prompts="context", classes=(), class_prompts=(),
        ...     results=(Result(metric="auc", value=0.9, interval=(0.85, 0.94), images=60, patients=40),),
        ...     baselines=(Result(metric="majority-class/auc", value=0.5),)))
        ['auc 0.900 [0.850-0.940], 60 images of 40 patients; baseline 0.500 (majority-class)']
    """
    by_direction = evaluation.task == "retrieval"
    main = [result for result in evaluation.results if by_direction or "/" not in result.metric]
    return [
        *(_result_line(result, evaluation.baselines) for result in main),
        *_calibration_lines(evaluation.calibration),
        *_gap_lines(evaluation.subgroups),
        *_prompt_lines(evaluation.prompt_sensitivity),
    ]


def _result_line(result: Result, baselines: Sequence[Result] = ()) -> str:
    named = [
        (baseline.value, baseline.metric.partition("/")[0])
        for baseline in baselines
        if baseline.metric.partition("/")[2] == result.metric and baseline.value is not None
    ]
    value = "not measured" if result.value is None else f"{result.value:.3f}"
    interval = "" if result.interval is None else f" [{result.interval[0]:.3f}-{result.interval[1]:.3f}]"
    reason = f" ({result.reason})" if result.reason else ""
    images = f"{count(result.images, 'image')} of {count(result.patients, 'patient')}"
    best = f"; baseline {max(named)[0]:.3f} ({max(named)[1]})" if named else ""
    return f"{result.metric} {value}{interval}{reason}, {images}{best}"


def _calibration_lines(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return []
    line = _result_line(calibration.ece)
    if calibration.ece_after is None or calibration.temperature is None:
        return [f"{line}; {calibration.reason}" if calibration.reason else line]
    images = count(calibration.validation_images, "validation image")
    fitted = f"temperature {calibration.temperature:.3g}, fitted on {images}"
    return [line, f"{_result_line(calibration.ece_after)}; {fitted}"]


def _gap_lines(subgroups: Sequence[Subgroups]) -> list[str]:
    return [
        _result_line(replace(gap, metric=f"{gap.metric} gap by {groups.by}"))
        for groups in subgroups
        for gap in groups.gaps
        if gap.value is not None
    ]


def _prompt_lines(sensitivity: PromptSensitivity | None) -> list[str]:
    if sensitivity is None:
        return []
    lines = [
        f"{spread.metric} over {len(sensitivity.templates)} prompt templates: {spread.lowest:.3f} to "
        f"{spread.highest:.3f}, mean {spread.mean:.3f}, standard deviation {spread.std:.3f}"
        for spread in sensitivity.spread
    ]
    for test in sensitivity.negation:
        areas = [
            f"{result.metric} {'not measured' if result.value is None else f'{result.value:.3f}'}"
            for result in test.results
        ]
        prevalence = "" if test.prevalence is None else f", present in {100 * test.prevalence:.0f} %"
        lines.append(
            f"{test.finding}: prompts for presence and absence have cosine {test.cosine:.3f}; {', '.join(areas)}; "
            f"predicted present in {100 * test.predicted_present:.0f} % of the images{prevalence}"
        )
    if sensitivity.context and sensitivity.token_norm is not None:
        norms = [vector.norm for vector in sensitivity.context]
        lines.append(
            f"context: {count(len(norms), 'vector')} of norm {min(norms):.3g} to {max(norms):.3g}; mean norm of token "
            f"embeddings {sensitivity.token_norm:.3g}"
        )
    lines += [
        f"  {vector.position}: {', '.join(f'{token!r} {cosine:.2f}' for token, cosine in vector.nearest_tokens)}"
        for vector in sensitivity.context
    ]
    return lines
