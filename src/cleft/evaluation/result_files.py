"""Evaluations as files of a run: `results/<name>.json`, whole or not at all.

A file names classes, numbers and digests; no patient, no image id and no folder stands in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cleft.errors import ResourceError
from cleft.evaluation.kept import Kept, write_kept
from cleft.files import read_limited, write_whole
from cleft.grammar import count
from cleft.results import Calibration, Evaluation, PromptAudit, Result, Subgroups, from_json, to_json


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


def spoken(evaluation: Evaluation) -> list[str]:
    """The main numbers in a few lines, each beside the highest floor of its metric.

    Example:
        >>> spoken(Evaluation(
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


def write_evaluation(evaluation: Evaluation, folder: Path, kept: Kept | None = None) -> Path:
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
            write_kept(kept, path, evaluation)
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
