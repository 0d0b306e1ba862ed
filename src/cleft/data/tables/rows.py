"""Typed table rows: conversion of text columns, filters, and conversion to records.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import gc
import math
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import Column, Table
from cleft.data.tables.faults import Fault, unreadable_texts
from cleft.grammar import share, verb
from cleft.types import Record

BLANK = 2
"""Code of a finding that is not mentioned; the others are 1 present, 0 absent, -1 uncertain."""

_CODES = {"": BLANK, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_val", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
_SEXES = {"male": "Male", "m": "Male", "female": "Female", "f": "Female"}
_MAX_AGE = 120
_ALLOWED = "allowed are 1, 0, -1 and empty"
_WORD = re.compile(r"(?!(?:.*\d){5})[\w.+/?-]{1,12}")
_LABELS = {
    *("yes", "no", "y", "n", "true", "false", "t", "f", "positive", "negative", "pos", "neg", "present", "absent"),
    *("unknown", "uncertain", "unsure", "na", "n/a", "nan", "none", "null", "normal", "abnormal", "x", "?", "+", "-"),
    *map(str, range(2, 10)),
    "inf",
}
_EXAMPLES = 3


@contextmanager
def gc_paused() -> Generator[None]:
    """Pauses garbage collection while many long-lived objects are created; also a decorator.

    With it, scanning the growing list of records takes as long as creating them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_codes(table: Table, findings: Sequence[str]) -> tuple[NDArray[np.int8], list[Fault]]:
    """Converts label columns to codes.

    Returns:
        Codes `[N, C]`: 1, 0, -1 or `BLANK`; and one fault per column with cells other than `1`, `0`, `-1` (or `1.0`,
        `0.0`, `-1.0`) and empty ones. Such cells count as blank.
    """
    codes = np.full((len(table), len(findings)), BLANK, dtype=np.int8)
    faults: list[Fault] = []
    for c, name in enumerate(findings):
        column = table.columns[name]
        cell_codes = [_CODES.get(value.strip()) for value in column.values]
        wrong = [i for i, code in enumerate(cell_codes) if code is None]
        if column.values:
            codes[:, c] = np.array([BLANK if code is None else code for code in cell_codes], dtype=np.int8)[
                column.index
            ]
        if wrong:
            are_labels = any(code not in (None, BLANK) for code in cell_codes)
            what, remedy = _describe_wrong_labels(
                name, [column.values[i].strip() for i in wrong], are_labels=are_labels
            )
            faults.append(Fault("label", what, remedy, table.lines_of(column, wrong)))
    return codes, faults


def _describe_wrong_labels(name: str, texts: Sequence[str], *, are_labels: bool) -> tuple[str, str]:
    """Returns what a label column holds instead of codes, and how to fix it.

    Only texts that look like labels are quoted, so that names or dates in a column of another kind do not leak.
    """
    quoted = [repr(text) for text in texts if _WORD.fullmatch(text) and (are_labels or text.casefold() in _LABELS)]
    if not quoted:
        return (
            f"column {name!r} holds text that is not a label",
            f"{_ALLOWED}; if it is not a finding, rename it '_{name}'",
        )
    held = ", ".join(quoted[:3]) + (", …" if len(texts) > min(3, len(quoted)) else "")
    return f"column {name!r} holds {held}", _ALLOWED


def read_texts(column: Column | None, rows: int) -> list[str | None]:
    """Returns the text of each row; None where it is empty or the table has no such column."""
    if column is None:
        return [None] * rows
    values = [value.strip() or None for value in column.values]
    return [values[i] for i in column.index.tolist()]


def read_sexes(column: Column | None, rows: int) -> tuple[list[str | None], int]:
    """Returns `Male`, `Female` or None for each row, and the number of other texts, such as `Unknown`."""
    texts = read_texts(column, rows)
    sexes = [_SEXES.get(text.casefold()) if text else None for text in texts]
    return sexes, sum(1 for text, sex in zip(texts, sexes, strict=True) if text and sex is None)


def read_splits(table: Table, column: Column | None) -> tuple[list[str | None] | None, list[Fault]]:
    """Returns `train`, `val`, `test` or None for each row, or None if there is no such column; and faults.

    Common synonyms such as `dev` and `holdout` are accepted.
    """
    if column is None:
        return None, []
    texts = [value.strip().casefold() for value in column.values]
    wrong = [i for i, text in enumerate(texts) if text and text not in _SPLIT_NAMES]
    splits = [_SPLIT_NAMES.get(text) for text in texts]
    read = [splits[i] for i in column.index.tolist()]
    if not wrong:
        return read, []
    held = ", ".join(repr(column.values[i][:40]) for i in wrong[:3]) + (", …" if len(wrong) > 3 else "")
    lines = table.lines_of(column, wrong)
    return read, [Fault("split", f"column 'split' holds {held}", "allowed are train, val, test and empty", lines)]


def read_ages(column: Column | None, rows: int) -> tuple[list[float | None], int]:
    """Returns the age in years of each row, and the number of texts that are not an age between 0 and 120."""
    if column is None:
        return [None] * rows, 0
    values = [_age(value.strip()) for value in column.values]
    wrong = [i for i, (text, age) in enumerate(zip(column.values, values, strict=True)) if text.strip() and age is None]
    return [values[i] for i in column.index.tolist()], len(column.rows_of(wrong))


def _age(text: str) -> float | None:
    try:
        age = float(text)
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= _MAX_AGE else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The columns of a dataset; entry i of every column belongs to the same image."""

    ids: list[str]
    images: list[str]
    """Path of each image as text."""
    findings: tuple[str, ...]
    codes: NDArray[np.int8]
    """1, 0, -1 or `BLANK`, `[N, C]`."""
    patients: list[str]
    lines: NDArray[np.int64]
    """Line of each row in its table, `[N]`."""
    studies: list[str | None] | None = None
    views: list[str | None] | None = None
    sexes: list[str | None] | None = None
    ages: list[float | None] | None = None
    captions: list[str | None] | None = None
    lateralities: list[str | None] | None = None
    scanners: list[str | None] | None = None
    splits: list[str | None] | None = None
    reports: list[str | None] | None = None
    """An optional column is None if the dataset does not have it."""


def text_faults(rows: Rows, *, reports: bool) -> list[Fault]:
    """Returns faults of texts that are too long or contain invisible characters.

    Args:
        rows: All rows.
        reports: Whether to check reports too, besides captions and names of findings.
    """
    texts: list[tuple[int, str, str]] = [(1, "the column of a finding", name) for name in rows.findings]
    for what, column in (("a caption", rows.captions), ("a report", rows.reports if reports else None)):
        texts += [(int(line), what, text) for line, text in zip(rows.lines, column or (), strict=False) if text]
    return unreadable_texts(texts)


def merge_duplicates(rows: Rows, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str], list[Fault]]:
    """Keeps one of several equal rows of an image.

    Returns:
        The remaining rows, the lines of the merged rows, and a fault if two rows of an image differ.
    """
    if len({rows.ids[row] for row in kept.tolist()}) == len(kept):
        return kept, [], []
    first: dict[str, int] = {}
    unique: list[int] = []
    merged: list[str] = []
    conflicts: list[int] = []
    for row in kept.tolist():
        other = first.setdefault(rows.ids[row], row)
        if other == row:
            unique.append(row)
        elif _content(rows, row) == _content(rows, other):
            merged.append(f"line {rows.lines[row]}")
        else:
            conflicts += [int(rows.lines[other]), int(rows.lines[row])]
    faults: list[Fault] = []
    if conflicts:
        faults.append(Fault("duplicate", "two rows of the same image disagree", "keep the correct row", conflicts))
    return np.array(unique, dtype=np.int64), merged, faults


def keep_views(
    rows: Rows, kept: NDArray[np.int64], views: Sequence[str] | None
) -> tuple[NDArray[np.int64], dict[str, list[str]]]:
    """Drops rows with other view positions; None keeps all.

    Rows of unknown view position are kept. `frontal`, which some file names say, is kept if AP or PA is.

    Returns:
        The remaining rows, and the ids of the dropped ones by `view-<view position>`.
    """
    if views is None or rows.views is None:
        return kept, {}
    wanted = {view.casefold() for view in views}
    if wanted & {"ap", "pa"}:
        wanted.add("frontal")
    keep = {view: view is None or view.casefold() in wanted for view in set(rows.views)}
    rejected: dict[str, list[str]] = {}
    for row in kept.tolist():
        view = rows.views[row]
        if not keep[view]:
            rejected.setdefault(f"view-{view}", []).append(rows.ids[row])
    mask = np.fromiter((keep[rows.views[row]] for row in kept.tolist()), dtype=bool, count=len(kept))
    return kept[mask], rejected


def drop_missing(
    rows: Rows, kept: NDArray[np.int64], present: NDArray[np.bool_], max_invalid: float
) -> tuple[NDArray[np.int64], list[str], list[Fault]]:
    """Drops rows without a file; a fault if their share exceeds `max_invalid`.

    Args:
        rows: All rows.
        kept: Indices of the rows to check, `[K]`.
        present: Whether the file of each exists, `[K]`.
        max_invalid: Largest share that may be missing.

    Returns:
        The remaining rows, the ids of the dropped ones, and the fault.
    """
    dropped = kept[~present].tolist()
    missing = [rows.ids[row] for row in dropped]
    faults: list[Fault] = []
    if len(missing) > max_invalid * len(kept):
        missing_images = f"{share(len(missing), len(kept), 'image')} {verb(len(missing), 'is', 'are')} not on disk"
        faults.append(
            Fault(
                "missing",
                f"{missing_images} ({len(missing) / len(kept):.1%}, data.max_invalid allows {max_invalid:.1%}), "
                f"such as {', '.join(missing[:_EXAMPLES])}",
                "complete the download, correct the paths, or raise data.max_invalid",
                rows.lines[dropped].tolist(),
            )
        )
    return kept[present], missing, faults


@gc_paused()
def to_records(rows: Rows, kept: NDArray[np.int64]) -> list[Record]:
    """Returns one record per kept row, in the table's order. Rows with equal labels share one mapping."""
    labels: dict[bytes, dict[str, float]] = {}
    width = len(rows.findings)
    blob = np.ascontiguousarray(rows.codes).tobytes()
    records: list[Record] = []
    blank: list[Any] = [None] * len(rows.ids)
    studies, views, splits = rows.studies or blank, rows.views or blank, rows.splits or blank
    sexes, ages = rows.sexes or blank, rows.ages or blank
    lateralities, scanners = rows.lateralities or blank, rows.scanners or blank
    captions, reports = rows.captions or blank, rows.reports or blank
    for row in kept.tolist():
        key = blob[row * width : (row + 1) * width]
        if key not in labels:
            pairs = zip(rows.findings, rows.codes[row].tolist(), strict=True)
            labels[key] = {finding: float(code) for finding, code in pairs if code != BLANK}
        records.append(
            Record(
                id=rows.ids[row],
                image=Path(rows.images[row]),
                labels=labels[key],
                patient=rows.patients[row],
                study=studies[row],
                view=views[row],
                sex=sexes[row],
                laterality=lateralities[row],
                age=ages[row],
                scanner=scanners[row],
                split=splits[row],
                caption=captions[row],
                report=reports[row],
            )
        )
    return records


def view_note(rejected: dict[str, list[str]], views: Sequence[str] | None) -> list[str]:
    """Returns a note with the number of images dropped by view position."""
    counts = Counter({reason.removeprefix("view-"): len(ids) for reason, ids in rejected.items()})
    if not counts or views is None:
        return []
    parts = ", ".join(f"{count:,} {view}" for view, count in counts.most_common())
    return [f"left out by view position: {parts} (data.views keeps {', '.join(views)})"]


def _content(rows: Rows, row: int) -> tuple[object, ...]:
    """Everything a row says about its image."""
    columns = (
        *(rows.patients, rows.studies, rows.views, rows.sexes, rows.ages, rows.captions),
        *(rows.lateralities, rows.scanners, rows.splits, rows.reports),
    )
    return (*(column[row] for column in columns if column), *rows.codes[row].tolist())
