"""How the table of a study calls its columns and prints their numbers: the same on the page and in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cleft.types import StudyLine

METRICS = {
    "accuracy": "Acc.",
    "auc": "AUC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "mean-rank": "mean rank",
    "median-rank": "median rank",
}
"""How the head of a column calls a metric."""
_PERCENT = ("accuracy", "auc", "auprc", "sensitivity", "specificity", "recall", "precision", "f1")


class Head(NamedTuple):
    """The head over several columns."""

    label: str
    span: int


def in_words(metric: str) -> str:
    """A metric as the axis of a figure calls it."""
    return "accuracy" if metric == "accuracy" else METRICS.get(metric, metric)


def in_percent(metric: str) -> bool:
    """Whether a table prints a hundred times the number: all but ranks and errors.

    Example:
        >>> in_percent("image-to-text/recall@5"), in_percent("auc/Edema"), in_percent("image-to-text/mean-rank")
        (True, True, False)
    """
    return any(part.partition("@")[0] in _PERCENT for part in metric.split("/"))


def as_printed(metric: str, value: float) -> str:
    """A number of a study as a table prints it, without its unit.

    Example:
        >>> as_printed("accuracy", 0.6674), as_printed("mean-rank", 12.25), as_printed("ece", 0.0381)
        ('66.7', '12.2', '0.038')
    """
    if in_percent(metric):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if "rank" in metric else f"{value:.3f}"


def as_change(metric: str, value: float) -> str:
    """A difference of two numbers of a study, with its sign.

    Example:
        >>> as_change("accuracy", -0.0214), as_change("mean-rank", 1.5)
        ('−2.1', '+1.5')
    """
    return ("−" if value < 0 else "+") + as_printed(metric, abs(value))


def table_heads(columns: Sequence[StudyLine]) -> list[list[Head]]:
    """What stands over the metrics: datasets over tasks where labels say both, else the labels alone."""
    parts = [_parts(column.label) for column in columns if column.metrics]
    spans = [len(column.metrics) for column in columns if column.metrics]
    tasks = [Head(task, span) for (_, task), span in zip(parts, spans, strict=True)]
    groups: list[Head] = []
    for (group, _), span in zip(parts, spans, strict=True):
        if groups and groups[-1].label == group:
            groups[-1] = Head(group, groups[-1].span + span)
        else:
            groups.append(Head(group, span))
    return [groups, tasks] if any(group.label for group in groups) else [tasks]


def _parts(label: str) -> tuple[str, str]:
    """Dataset and task of a column.

    Example:
        >>> _parts("CheXpert-5x200, zero-shot"), _parts("Zero-shot")
        (('CheXpert-5x200', 'zero-shot'), ('', 'Zero-shot'))
    """
    group, _, task = label.rpartition(", ")
    return group, task


def column_starts(columns: Sequence[StudyLine]) -> list[str]:
    """How each metric's column begins: a new dataset, a new task, or the same task."""
    found: list[str] = []
    last = ""
    for column in columns:
        group = _parts(column.label)[0]
        for place, _ in enumerate(column.metrics):
            found.append("" if place else "group" if group != last or not found else "task")
        last = group
    return found
