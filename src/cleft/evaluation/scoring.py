"""Scores and labels to named results: every class, their mean, and the floors on the same images.

Two questions can be asked of an image. *Multi-class*: which one of these classes is it? It is put only to
images that show exactly one of them. *Present-absent*: is this finding there? It is put once per finding, to
every image where that is known.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.evaluation.floors import ap_rule, majority_scores, view_rule, why_no_view
from cleft.evaluation.metrics import Flags, Floats, Statistic, accuracy, auc, intervals, mean_of, value_of
from cleft.types import Result


class Draws(NamedTuple):
    """How intervals are drawn."""

    resamples: int = 1_000
    seed: int = 0


USUAL_DRAWS = Draws()


class _Part(NamedTuple):
    """One class's number before it is measured."""

    name: str
    statistic: Statistic | None
    rows: Flags
    reason: str | None = None


def score_classes(
    scores: Floats,
    truth: NDArray[np.intp],
    classes: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
    *,
    answers: NDArray[np.intp] | None = None,
    rule: str = "",
    note: str | None = None,
) -> tuple[Result, ...]:
    """Accuracy, macro AUC and one-vs-rest AUC of each class, for images that show exactly one class.

    Args:
        scores: One-vs-rest score of each class, `[N, C]`; higher where it is thought shown.
        truth: Class of each image, `[N]`.
        classes: Names of the classes, `[C]`.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        answers: Class each image was answered as; by default the one with the highest score.
        rule: Name of the floor these scores come from, put in front of each metric.
        note: A remark for every number.

    Returns:
        `accuracy`, `auc` (mean over the classes that occur) and `auc/<class>`, in this order.

    Raises:
        NumericsError: If a score is not finite.
    """
    every = np.ones(len(truth), dtype=bool)
    given = scores.argmax(axis=1) if answers is None else answers
    parts = [_auc_part(name, scores[:, c], truth == c, every) for c, name in enumerate(classes)]
    hits = _Part("accuracy", accuracy(given == truth), every)
    return (
        _measured(f"{rule}accuracy", hits, patients, draws, note=note),
        _mean(f"{rule}auc", parts, patients, draws, note=note),
        *(_measured(f"{rule}auc/{part.name}", part, patients, draws, note=note) for part in parts),
    )


def score_findings(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
    *,
    rule: str = "",
    notes: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[Result, ...]:
    """Accuracy and AUC of each finding, present against absent, over the images where that is known.

    Args:
        scores: Above zero where the finding is answered as present, `[N, C]`.
        labels: 1 present, 0 absent, NaN not known, `[N, C]`.
        findings: Names of the findings, `[C]`.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        rule: Name of the floor these scores come from, put in front of each metric.
        notes: Finding to a remark for its numbers.

    Returns:
        `accuracy`, `auc` (means over the findings that allow it), then `accuracy/<finding>` and `auc/<finding>`.

    Raises:
        NumericsError: If a score is not finite.
    """
    hits: list[_Part] = []
    areas: list[_Part] = []
    for column, name in enumerate(findings):
        known = ~np.isnan(labels[:, column])
        positive = labels[known, column] == 1
        right = (scores[known, column] > 0) == positive
        hits.append(_Part(name, accuracy(right) if known.any() else None, known, _why_unknown(known, name)))
        areas.append(_auc_part(name, scores[:, column], labels[:, column] == 1, known))
    return (
        _mean(f"{rule}accuracy", hits, patients, draws),
        _mean(f"{rule}auc", areas, patients, draws),
        *(_measured(f"{rule}accuracy/{part.name}", part, patients, draws, note=notes.get(part.name)) for part in hits),
        *(_measured(f"{rule}auc/{part.name}", part, patients, draws, note=notes.get(part.name)) for part in areas),
    )


def class_floors(
    truth: NDArray[np.intp],
    views: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority class and the AP-view rule reach on the images of `score_classes`."""
    counts = [int(index) for index in truth]
    majority = majority_scores(counts, len(classes))
    floors = score_classes(majority, truth, classes, patients, draws, rule="majority-class/")
    scores, note = view_rule(counts, views, classes)
    if scores is None:
        return (*floors, *_unmeasured("ap-view/", note, len(truth), patients))
    return (*floors, *score_classes(scores, truth, classes, patients, draws, rule="ap-view/", note=note))


def finding_floors(
    labels: Floats,
    views: Sequence[str | None],
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority answer and the AP-view rule, finding by finding, reach on the images of `score_findings`."""
    present = (labels == 1).sum(axis=0) > (labels == 0).sum(axis=0)
    majority = np.tile(np.where(present, 1.0, -1.0), (len(labels), 1))
    floors = score_findings(majority, labels, findings, patients, draws, rule="majority-class/")
    silent = why_no_view(views)
    if silent is not None:
        return (*floors, *_unmeasured("ap-view/", silent, len(labels), patients))
    rules = {
        name: ap_rule(labels[:, c] == 1, views, name, known=~np.isnan(labels[:, c])) for c, name in enumerate(findings)
    }
    by_view = np.stack([scores for scores, _ in rules.values()], axis=1)
    notes = {name: note for name, (_, note) in rules.items()}
    return (*floors, *score_findings(by_view, labels, findings, patients, draws, rule="ap-view/", notes=notes))


def _auc_part(name: str, scores: Floats, positive: Flags, known: Flags) -> _Part:
    statistic = auc(scores[known], positive[known])
    shown = positive[known]
    reason = _why_unknown(known, name)
    if reason is None and not shown.any():
        reason = f"no image shows {name}"
    elif reason is None and shown.all():
        reason = f"every image shows {name}"
    return _Part(name, None if reason else statistic, known, reason)


def _why_unknown(known: Flags, name: str) -> str | None:
    return None if known.any() else f"no image says whether {name} is there"


def _measured(metric: str, part: _Part, patients: Sequence[str], draws: Draws, *, note: str | None = None) -> Result:
    """The value and interval of one statistic over the images it rests on."""
    whose = [patient for patient, known in zip(patients, part.rows, strict=True) if known]
    if part.statistic is None:
        return Result(metric=metric, value=None, images=len(whose), patients=len(set(whose)), reason=part.reason)
    bounds, doubt = intervals([part.statistic], whose, resamples=draws.resamples, seed=draws.seed)[0]
    return Result(
        metric=metric,
        value=value_of(part.statistic, len(whose)),
        interval=bounds,
        images=len(whose),
        patients=len(set(whose)),
        reason="; ".join(sentence for sentence in (note, doubt) if sentence) or None,
    )


def _mean(
    metric: str, parts: Sequence[_Part], patients: Sequence[str], draws: Draws, *, note: str | None = None
) -> Result:
    """The mean over the parts that are defined; the reason says over how many of how many."""
    defined = [part for part in parts if part.statistic is not None]
    rows = np.logical_or.reduce([part.rows for part in defined or parts])
    missing = "; ".join(part.reason for part in parts if part.reason)
    if not defined:
        return _measured(metric, _Part(metric, None, rows, missing), patients, draws)
    statistic = mean_of([_within(part, rows) for part in defined])
    over = f"mean over {len(defined)} of {len(parts)} classes: {missing}" if missing else None
    note = "; ".join(sentence for sentence in (note, over) if sentence) or None
    return _measured(metric, _Part(metric, statistic, rows), patients, draws, note=note)


def _within(part: _Part, rows: Flags) -> Statistic:
    """The part's statistic, asked with the counts of more images than it rests on."""
    statistic, columns = part.statistic, np.flatnonzero(part.rows[rows])
    assert statistic is not None

    def narrowed(counts: Floats) -> Floats:
        return statistic(counts[:, columns])

    return narrowed


def _unmeasured(rule: str, reason: str | None, images: int, patients: Sequence[str]) -> tuple[Result, ...]:
    people = len(set(patients))
    return tuple(
        Result(metric=f"{rule}{metric}", value=None, images=images, patients=people, reason=reason)
        for metric in ("accuracy", "auc")
    )
